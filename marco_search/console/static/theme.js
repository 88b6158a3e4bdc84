// Light or dark: what the reader chose, else what the system prefers. Runs before the page is
// drawn, so that nothing flashes.
(() => {
  const KEY = "marco-theme";
  const root = document.documentElement;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");

  const stored = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // a file opened from disk may have no storage
    }
  };
  const isDark = () => (root.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";
  const announce = () => {
    const button = document.querySelector("[data-theme-toggle]");
    if (button) {
      button.textContent = isDark() ? "Light" : "Dark";
      button.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
    }
  };

  const chosen = stored();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  systemDark.addEventListener("change", announce);
  document.addEventListener("DOMContentLoaded", () => {
    announce();
    document.querySelector("[data-theme-toggle]")?.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try {
        localStorage.setItem(KEY, root.dataset.theme);
      } catch {
        // Not stored: it lasts as long as the page.
      }
      announce();
    });
  });
})();
