// What the tests ask inside the page.

window.probes = {
  /** All text that is shown, with its contrast to what is behind it. */
  contrast() {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = (colour) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => channel(value / 255));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
      for (let each = node; each; each = each.parentElement) {
        const colour = getComputedStyle(each).backgroundColor;
        if (colour !== "rgba(0, 0, 0, 0)") return colour;
      }
    };
    const nodes = document.querySelectorAll(".token, a, button, p, li, label, th, td, h1, h1 span, input");
    const shown = [...nodes].filter((node) => node.checkVisibility() && !node.disabled && node.className !== "unseen");
    return shown.map((node) => {
      const [dark, light] = [getComputedStyle(node).color, behind(node)].map(luminance).sort((a, b) => a - b);
      return [`${node.tagName} ${node.className} ${node.textContent.slice(0, 20)}`, (light + 0.05) / (dark + 0.05)];
    });
  },

  /** Controls, pictures and regions without a name. */
  unnamed() {
    const nodes = document.querySelectorAll("button, input, select, textarea, a, [role=region], [role=img]");
    const isNamed = (node) => node.labels?.length || node.getAttribute("aria-label") || node.textContent.trim();
    return [...nodes].filter((node) => !isNamed(node)).map((node) => node.outerHTML);
  },

  /** Tries what the policy forbids. Tells the directives that were broken, how each try ended, and what ran. */
  async trespass() {
    const broken = [];
    document.addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
    const append = (tag, property) => {
      const node = document.createElement(tag);
      node[property] = tag === "script" ? "window.ran = 1" : "p {}";
      document.head.append(node);
    };
    // In a task of its own: DevTools may evaluate what the page may not.
    const later = (run) => new Promise((resolve, reject) => setTimeout(() => attempt(run).then(resolve, reject)));
    const attempt = async (run) => run();
    const tries = [
      () => append("script", "text"),
      () => append("style", "textContent"),
      () => document.body.setAttribute("style", "color: red"),
      () => (document.body.innerHTML = "<p>"),
      () => later(() => window.eval("window.ran = 2")),
      () => (new Image().src = "http://elsewhere.invalid/a.png"),
      () => fetch("http://elsewhere.invalid/"),
    ];
    const results = [];
    for (const each of tries) results.push(await attempt(each).then(() => "ran", (error) => error.name));
    await new Promise((resolve) => setTimeout(resolve, 100));
    return { broken, results, ran: window.ran ?? 0 };
  },
};
