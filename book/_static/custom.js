// What scrolls has to be reachable with the keyboard. The theme sees to that for code, measuring it
// when the window changes; formulas, figures on phones, and code that a fold hid until now, are left
// to us.
const SCROLLING = 'mjx-container[display="true"], mjx-container.wide, article figure';

function reachWhatScrolls() {
  // A formula in a line of text that is wider than the text scrolls too, see custom.css.
  for (const formula of document.querySelectorAll('mjx-container:not([display="true"])')) {
    formula.classList.remove("wide");
    const column = formula.closest("p, li, dd, dt, td, th") ?? formula.parentElement;
    formula.classList.toggle("wide", formula.offsetWidth > column.clientWidth + 1);
  }
  for (const wide of document.querySelectorAll(SCROLLING)) {
    wide.toggleAttribute("tabindex", false);
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
  }
}

window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  reachWhatScrolls();
});
window.addEventListener("resize", reachWhatScrolls);
document.addEventListener("click", (event) => {
  if (event.target.closest("summary, .toggle-button, .admonition-title")) {
    window.dispatchEvent(new Event("resize"));
  }
});
