// What scrolls has to be reachable with the keyboard. The theme sees to that for code, measuring it
// when the window changes; formulas, and code that a fold hid until now, are left to us.
function reachWideFormulas() {
  for (const formula of document.querySelectorAll('mjx-container[display="true"]')) {
    formula.toggleAttribute("tabindex", false);
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
  }
}

window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  reachWideFormulas();
});
window.addEventListener("resize", reachWideFormulas);
document.addEventListener("click", (event) => {
  if (event.target.closest("summary, .toggle-button, .admonition-title")) {
    window.dispatchEvent(new Event("resize"));
  }
});
