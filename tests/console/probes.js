// What the tests ask inside the page.

window.probes = {
  /** All text that is shown, with its contrast to what is behind it; in pictures at its ends, too. */
  contrast() {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = (layers) => {
      canvas.clearRect(0, 0, 1, 1);
      for (const [colour, opacity] of layers) {
        canvas.globalAlpha = opacity;
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
      }
      const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => channel(value / 255));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const above = (node) => (node ? [node, ...above(node.parentElement)] : []);
    const style = (node, part) => getComputedStyle(node, part);
    const opacity = (node) => above(node).reduce((product, each) => product * Number(style(each).opacity), 1);
    const ground = (node) => {
      const colours = above(node).map((each) => style(each).backgroundColor);
      return colours.find((colour) => colour !== "rgba(0, 0, 0, 0)");
    };
    const shapes = (text, x, y) => {
      const isUnder = (each) => each.matches("rect, path") && style(each).fill !== "none" && each.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING;
      const under = document.elementsFromPoint(x, y).filter((each) => each.ownerSVGElement && isUnder(each));
      return under.reverse().map((each) => [style(each).fill, opacity(each)]);
    };
    const behind = (node) => {
      const page = [ground(node), 1];
      if (!node.ownerSVGElement) return [[page]];
      node.scrollIntoView({ block: "center", inline: "center" });
      const { x, y, width, height } = node.getBoundingClientRect();
      return [1, width / 2, width - 1].map((dx) => [page, ...shapes(node, x + dx, y + height / 2)]);
    };
    const colour = (node) => {
      if (node.ownerSVGElement) return style(node).fill;
      return style(node, node.placeholder && !node.value ? "::placeholder" : null).color;
    };
    const isText = (child) => child.nodeType === Node.TEXT_NODE && child.data.trim();
    const hasText = (node) => [...node.childNodes].some(isText) || node.matches("input, textarea, select");
    const isShown = (node) => node.checkVisibility() && !node.disabled && !node.closest(".unseen, option, script, noscript");
    const nodes = [...document.querySelectorAll("body *")].filter((node) => hasText(node) && isShown(node));
    return nodes.flatMap((node) =>
      behind(node).map((layers) => {
        const pair = [luminance(layers), luminance([...layers, [colour(node), opacity(node)]])];
        const [dark, light] = pair.sort((a, b) => a - b);
        return [`${node.tagName} ${node.getAttribute("class")} ${node.textContent.slice(0, 20)}`, (light + 0.05) / (dark + 0.05)];
      }),
    );
  },

  /** Controls, pictures and regions without a name. */
  unnamed() {
    const nodes = document.querySelectorAll("button, input, select, textarea, a, [role=region], [role=img]");
    const isNamed = (node) => node.labels?.length || node.getAttribute("aria-label") || node.textContent.trim();
    return [...nodes].filter((node) => !isNamed(node)).map((node) => node.outerHTML);
  },

  /** Keeps a copy of what comes from this path; `kept` returns the texts when they are whole. */
  keep(path) {
    const copies = [];
    const { fetch } = window;
    window.fetch = async (url, ...rest) => {
      const response = await fetch(url, ...rest);
      if (String(url).endsWith(path)) copies.push(response.clone().text());
      return response;
    };
    this.kept = () => Promise.all(copies);
  },

  /** The rows of the table with this caption, shown or folded: texts by the name of their column, and the row's link. */
  table(caption) {
    const found = this._table(caption);
    const names = [...found.tHead.rows[0].cells].map((cell) => cell.textContent);
    const texts = (row) => [...row.cells].map((cell, i) => [names[i], cell.textContent]);
    const link = (row) => row.querySelector("a")?.hash ?? "";
    return [...found.tBodies[0].rows].map((row) => ({ ...Object.fromEntries(texts(row)), link: link(row) }));
  },

  /** Takes the rows of the table with this caption away, until the page writes them again. */
  empty(caption) {
    this._table(caption).tBodies[0].replaceChildren();
  },

  _table: (caption) => [...document.querySelectorAll("table")].find((each) => each.caption?.textContent === caption),

  /** What the list of a timeline's phases says. */
  phases() {
    return [...document.querySelectorAll(".phases li")].map((item) => item.textContent);
  },

  /** The widths of the bars of a timeline's phases, by phase. */
  bars() {
    const kinds = ["before", "opening", "prefill", "decode", "end"];
    return Object.fromEntries(kinds.map((kind) => [kind, document.querySelector(`.timeline svg > path.${kind}`).getBBox().width]));
  },

  /** The number of squares in a timeline, by what they are. */
  squares() {
    const paths = [...document.querySelectorAll(".timeline path.square")];
    return Object.fromEntries(paths.map((path) => [path.classList[1], path.getAttribute("d").split("M").length - 1]));
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
