// A page that refreshes itself: fetches its own address and replaces the parts that changed.

const HIDDEN_MS = 1000; // poll interval while the page is hidden

// Polls every few seconds while `running()` and the page is visible; `onChange` gets the new page.
export function follow(running, onChange = () => {}) {
  const seconds = Math.min(
    ...[...document.querySelectorAll("[data-live]")].map((part) => Number(part.dataset.live)),
  );
  if (!Number.isFinite(seconds)) return;
  const next = (wait) => setTimeout(poll, wait);
  const poll = async () => {
    if (document.hidden) {
      next(HIDDEN_MS);
      return;
    }
    if (!running()) return;
    try {
      const answer = await fetch(location.href, { headers: { "X-Refresh": "1", Accept: "text/html" } });
      if (answer.redirected) return; // the session has ended
      if (answer.status === 200) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        replace(fresh);
        await onChange(fresh);
      }
    } catch {
      // The console may be restarting: try again.
    }
    // Not all tabs at the same moment.
    next(1000 * seconds * (0.9 + 0.2 * Math.random()));
  };
  next(1000 * seconds);
}

function replace(fresh) {
  for (const old of document.querySelectorAll("[data-live]")) {
    const part = fresh.getElementById(old.id);
    if (!part || part.isEqualNode(old)) continue;
    const open = [...old.querySelectorAll("details[id][open]")].map((one) => one.id);
    const focus = old.contains(document.activeElement) ? position(old) : -1;
    old.replaceWith(document.adoptNode(part));
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focus >= 0) focusable(part)[focus]?.focus({ preventScroll: true });
  }
}

function focusable(part) {
  return [...part.querySelectorAll("a[href], button, summary, [tabindex]")];
}

function position(part) {
  return focusable(part).indexOf(document.activeElement);
}

// A list keeps changing.
if (!document.getElementById("explorer")) follow(() => true);
