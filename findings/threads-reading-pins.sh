#!/usr/bin/env bash
# Whether another thread's torch.set_num_threads overrules one's own depends on having read it.
#
# Versions: Python 3.11, torch 2.13.0 (OpenMP build).
# Expected: the number is one per process (the last call wins) or one per thread (one's own call
#   wins). In either case torch.get_num_threads() only reads it.
# Seen (2026-11-27): neither. The main thread sets 4, another thread sets 1 and ends; main has then
#     4 after it read the number in between
#     4 after it computed something large in between
#     1 after it did neither, or computed something small
#   for a thread adopts the process's last number at its first look or parallel loop, even over its
#   own call. Threads started later take the last number set anywhere: 1, also where main has 4.
#   Hence "save, set 1, restore", in two threads that overlap, leaves 1 to the process for good:
#     first thread restored 4, second restored 1; main 1, a new thread 1
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3.11 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$tmp/threads.py" <<'EOF'
import sys
import threading

import torch


def in_thread(function, *arguments):
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments)))
    thread.start()
    thread.join()
    return found[0]


def saved_and_restored_by_two():
    """The second thread starts while the first has set 1, and ends after it."""
    first_set, second_set, first_done = (threading.Event() for _ in range(3))
    restored = {}

    def hold(name, wait_before, say, wait_inside, done):
        if wait_before is not None:
            wait_before.wait()
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        say.set()
        wait_inside.wait()
        torch.set_num_threads(before)
        restored[name] = before
        if done is not None:
            done.set()

    threads = [
        threading.Thread(target=hold, args=("first", None, first_set, second_set, first_done)),
        threading.Thread(target=hold, args=("second", first_set, second_set, first_done, None)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return restored


between = {
    "nothing": lambda: None,
    "small": lambda: torch.ones(3) + 1,
    "large": lambda: torch.ones(1_000_000).exp(),
    "read": torch.get_num_threads,
}
case = sys.argv[1]
torch.set_num_threads(4)
if case == "overlap":
    restored = saved_and_restored_by_two()
    main, later = torch.get_num_threads(), in_thread(torch.get_num_threads)
    print(f"overlap: restored {restored}; main {main}, a new thread {later}")
    assert restored == {"first": 4, "second": 1} and main == later == 1
else:
    between[case]()
    in_thread(torch.set_num_threads, 1)
    main, later = torch.get_num_threads(), in_thread(torch.get_num_threads)
    print(f"{case:8}: main set 4 and has {main}, a new thread has {later}")
    assert (main, later) == ({"nothing": 1, "small": 1, "large": 4, "read": 4}[case], 1)
EOF
for case in nothing small large read overlap; do
    "$tmp/venv/bin/python" -I "$tmp/threads.py" $case
done
