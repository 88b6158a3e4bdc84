// The tree on a canvas: thousands of nodes stay smooth, since only those in view are drawn.

const CARD = { height: 28, column: 28, row: 42, radius: 6 };
const WIDTHS = [320, 640]; // of the cards, which are as wide as the longest label and the frame allow
const COUNTS = 140; // of a card's width, for visits and value
const LEAST_SHARED = 40; // of less it is not worth leaving something out
const RAIL = 12; // from a card's left edge to the line that leads down from it
const TEXT_FROM = 0.5; // below this scale a card is only a block of colour
const OVERVIEW = 0.45; // largest scale at which rows may be pressed together
const READABLE = [0.65, 0.8]; // least scales at which a long and a short path are first shown
const MARGIN = 24;
const SCALES = [0.02, 2.5];

// How far something `size` long at `from` must move to lie well within `room`, in pixels.
function push(from, size, room) {
  const margin = Math.min(90, Math.max(8, (room - size) / 3));
  if (from < margin) return margin - from;
  return Math.min(0, room - margin - size - from);
}

export class Drawing {
  // `onSelect` gets the node that was clicked.
  constructor(frame, tree, onSelect) {
    this.frame = frame;
    this.canvas = frame.querySelector("canvas");
    this.context = this.canvas.getContext("2d");
    this.selected = null;
    this.marked = new Set(); // nodes on the paths of the answer that was chosen
    this.labels = new Map();
    // Pixels from row to row: the rows of a tall tree are pressed together to show all of it.
    this.step = CARD.row;
    this.transform = d3.zoomIdentity;
    this.zoom = d3
      .zoom()
      .scaleExtent(SCALES)
      // The wheel scrolls the page until the tree has the focus.
      .filter((event) => this.#wants(event))
      .on("zoom", (event) => {
        this.transform = event.transform;
        this.redraw();
      })
      .on("end", (event) => {
        if (!this.pressed || event.transform.k < TEXT_FROM) return;
        const pointer = event.sourceEvent && d3.pointer(event.sourceEvent, this.canvas);
        this.#setStep(CARD.row, pointer?.[1] ?? this.height / 2);
      });
    d3.select(this.canvas)
      .call(this.zoom)
      .on("dblclick.zoom", null)
      .on("click", (event) => {
        const node = this.nodeAt(...d3.pointer(event, this.canvas));
        if (node) onSelect(node);
      })
      .on("pointermove", (event) => {
        const over = this.nodeAt(...d3.pointer(event, this.canvas));
        this.canvas.classList.toggle("over", over !== null);
      });
    this.readColours();
    this.#resize();
    this.setTree(tree);
    new ResizeObserver(() => this.#resize()).observe(frame);
  }

  #wants(event) {
    if (event.type === "wheel") return event.ctrlKey || document.activeElement === this.frame;
    return !event.button;
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    const names = ["card", "ink", "muted", "line", "accent", "accent-soft", "reflection", "edge"];
    this.colours = Object.fromEntries(names.map((name) => [name, read(name)]));
    this.ramp = d3.interpolateRgb(read("value-low"), read("value-high"));
    this.font = style.fontFamily || "sans-serif";
    this.labels.clear();
    this.redraw();
  }

  setTree(tree) {
    this.tree = tree;
    this.labels.clear();
    this.context.font = this.#labelFont;
    const widths = tree.nodes.map((node) => this.context.measureText(node.label.slice(0, 160)).width);
    const longest = widths.reduce((most, width) => Math.max(most, width), 0);
    const most = Math.min(WIDTHS[1], this.width / READABLE[1] - 3 * MARGIN);
    this.cardWidth = Math.max(WIDTHS[0], Math.min(most, longest + COUNTS + 26));
    this.redraw();
  }

  get #labelFont() {
    return `12.5px ${this.font}`;
  }

  nodeAt(x, y) {
    const [at, down] = this.transform.invert([x, y]);
    const node = this.tree.atRow.get(Math.floor(down / this.step));
    if (!node || !this.tree.has(node)) return null;
    const [left, top] = this.#corner(node);
    if (at < left || at > left + this.cardWidth) return null;
    // At a small scale the gaps are too small to click.
    return down - top <= this.cardHeight || this.transform.k < TEXT_FROM ? node : null;
  }

  get pressed() {
    return this.step < CARD.row;
  }

  get cardHeight() {
    return (this.step * CARD.height) / CARD.row;
  }

  // The row at `y` on the screen stays there.
  #setStep(step, y) {
    const { transform } = this;
    const row = transform.invertY(y) / this.step;
    this.step = step;
    const moved = d3.zoomIdentity.translate(transform.x, y - row * step * transform.k);
    d3.select(this.canvas).call(this.zoom.transform, moved.scale(transform.k));
  }

  // The first view: all of it if it stays readable, else the best path; `node` is its end.
  open(node) {
    const whole = (this.height - 2 * MARGIN) / (((node?.row ?? 0) + 1) * CARD.row);
    this.fit(Math.max(READABLE[0], Math.min(READABLE[1], whole)), node);
  }

  // Fit the whole tree; `least` is the smallest scale, and `node` is in view whatever that is.
  fit(least = SCALES[0], node = null) {
    const { columns, rows } = this.tree;
    const width = columns * CARD.column + this.cardWidth;
    const across = (this.width - 2 * MARGIN) / width;
    const room = this.height - 2 * MARGIN;
    let k = Math.max(least, Math.min(1.1, across, room / (rows * CARD.row + CARD.height)));
    this.step = CARD.row;
    if (k < OVERVIEW && across > k) {
      k = Math.min(OVERVIEW, across);
      this.step = Math.min(CARD.row, room / k / (rows + 1));
    }
    const height = (rows + 1) * this.step;
    const x = width * k < this.width ? (this.width - width * k) / 2 : MARGIN;
    const y = height * k < this.height ? (this.height - height * k) / 2 : MARGIN;
    const end = node ? this.height - MARGIN - (node.row * this.step + CARD.height) * k : y;
    this.#go(d3.zoomIdentity.translate(x, Math.min(y, end)).scale(k));
  }

  zoomBy(factor) {
    d3.select(this.canvas).transition().duration(this.#pace(150)).call(this.zoom.scaleBy, factor);
  }

  // Bring a node into view with the least movement; `middle`: to the middle.
  show(node, middle = false) {
    if (this.pressed) this.step = CARD.row; // it moves there in any case
    const [left, top] = this.#corner(node);
    const k = Math.max(this.transform.k, TEXT_FROM * 1.2);
    if (middle || k !== this.transform.k) {
      const [x, y] = [left + this.cardWidth / 2, top + CARD.height / 2];
      const centred = d3.zoomIdentity.translate(this.width / 2, this.height / 2).scale(k);
      this.#go(centred.translate(-x, -y));
      return;
    }
    const [x, y] = this.transform.apply([left, top]);
    const right = push(x, Math.min(this.cardWidth * k, this.width - 16), this.width);
    const down = push(y, CARD.height * k, this.height);
    if (right || down) this.#go(this.transform.translate(right / k, down / k));
  }

  #go(transform) {
    d3.select(this.canvas).transition().duration(this.#pace(200)).call(this.zoom.transform, transform);
  }

  #pace(milliseconds) {
    return matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : milliseconds;
  }

  #corner(node) {
    return [node.column * CARD.column, node.row * this.step];
  }

  #resize() {
    const box = this.frame.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    this.width = Math.max(1, this.frame.clientWidth || box.width);
    this.height = Math.max(1, this.frame.clientHeight || box.height);
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.ratio = ratio;
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.#draw();
    });
  }

  #draw() {
    const { context, transform, tree, ratio } = this;
    const { k } = transform;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.translate(transform.x, transform.y);
    context.scale(k, k);
    const [left, top] = transform.invert([0, 0]);
    const [right, bottom] = transform.invert([this.width, this.height]);
    const shown = [];
    for (const node of tree.nodes) {
      if (!tree.has(node)) continue;
      const [x, y] = this.#corner(node);
      const inColumns = x <= right && x + this.cardWidth >= left;
      if (inColumns && y <= bottom && y + this.cardHeight >= top) shown.push(node);
    }
    // Those that stand out last: they lie above the others.
    const edges = this.pressed ? [] : tree.nodes.filter((node) => tree.has(node));
    for (const strong of [false, true]) {
      for (const node of edges) {
        if (this.#standsOut(node) === strong) this.#edge(node, strong, left, top, right, bottom);
      }
    }
    if (this.pressed) this.#threads();
    for (const node of shown) this.#card(node, k);
    context.globalAlpha = 1;
  }

  // Edges at a small scale: straight, all in one stroke, since there may be thousands.
  #threads() {
    const { context } = this;
    context.globalAlpha = this.marked.size ? 0.3 : 0.7;
    context.strokeStyle = this.colours.edge;
    context.lineWidth = 0.6 / this.transform.k;
    context.beginPath();
    for (const node of this.tree.nodes) {
      const parent = this.tree.has(node) && this.tree.parent(node);
      if (!parent) continue;
      const [x1, y1] = this.#corner(parent);
      const [x2, y2] = this.#corner(node);
      context.moveTo(x1 + RAIL, y1 + this.cardHeight);
      context.lineTo(x1 + RAIL, y2 + this.cardHeight / 2);
      context.lineTo(x2, y2 + this.cardHeight / 2);
    }
    context.stroke();
  }

  #standsOut(node) {
    return (this.marked.size ? this.marked : this.tree.winning).has(node.node_id);
  }

  #edge(node, strong, left, top, right, bottom) {
    const parent = this.tree.parent(node);
    if (!parent) return;
    const [fromX, fromY] = this.#corner(parent);
    const [x2, toY] = this.#corner(node);
    const turns = x2 > fromX;
    const [x1, y1] = [fromX + RAIL, fromY + this.cardHeight];
    const y2 = turns ? toY + this.cardHeight / 2 : toY;
    if (Math.max(x1, x2) < left || x1 > right || y2 < top || y1 > bottom) return;
    const { context } = this;
    const visits = this.tree.visits.get(node.node_id) ?? 0;
    context.globalAlpha = this.marked.size && !strong ? 0.3 : 1;
    context.strokeStyle = strong ? this.colours.accent : this.colours.edge;
    // A line stays thick enough to be seen.
    const thick = strong ? 3 : 1 + Math.min(visits, 12) / 6;
    context.lineWidth = Math.max(thick, 0.6 / this.transform.k);
    context.beginPath();
    context.moveTo(x1, y1);
    if (turns) context.arcTo(x1, y2, x2, y2, CARD.radius);
    context.lineTo(turns ? x2 : x1, y2);
    context.stroke();
  }

  #card(node, k) {
    const { context, colours, tree } = this;
    const [x, y] = this.#corner(node);
    const strong = this.#standsOut(node);
    const relative = tree.relativeValue(node);
    const value = relative === null ? colours.line : this.ramp(relative);
    context.globalAlpha = this.marked.size && !strong ? 0.35 : 1;
    const block = this.pressed || k < TEXT_FROM;
    const height = Math.max(this.cardHeight, (strong ? 2 : 0.7) / k); // never too thin to be seen
    context.beginPath();
    if (block) context.rect(x, y, this.cardWidth, height);
    else context.roundRect(x, y, this.cardWidth, height, CARD.radius);
    if (block) {
      context.fillStyle = strong ? colours.accent : value;
      context.fill();
    } else {
      const plain = node.action === "reflection" ? colours.reflection : colours.card;
      context.fillStyle = strong ? colours["accent-soft"] : plain;
      context.fill();
      context.strokeStyle = strong ? colours.accent : colours.line;
      context.lineWidth = strong ? 2 : 1;
      context.stroke();
      context.fillStyle = value;
      context.fillRect(x + 5, y + 7, 4, CARD.height - 14);
      this.#text(node, x, y);
    }
    if (node === this.selected) {
      context.globalAlpha = 1;
      context.strokeStyle = colours.ink;
      context.lineWidth = Math.max(2.5, 2 / k);
      context.beginPath();
      context.roundRect(x - 4, y - 4, this.cardWidth + 8, height + 8, CARD.radius + 3);
      context.stroke();
    }
  }

  #text(node, x, y) {
    const { context, colours, tree } = this;
    context.textBaseline = "alphabetic";
    context.fillStyle = colours.ink;
    context.font = this.#labelFont;
    context.fillText(this.#label(node), x + 16, y + 18);
    context.fillStyle = colours.muted;
    context.font = `11px ${this.font}`;
    const visits = tree.visits.get(node.node_id) ?? 0;
    const value = tree.values.get(node.node_id);
    const shown = value === undefined ? "–" : value.toFixed(3);
    const counts = `${visits} visit${visits === 1 ? "" : "s"} · value ${shown}`;
    context.textAlign = "right";
    context.fillText(counts, x + this.cardWidth - 10, y + 18);
    context.textAlign = "left";
    if (!node.unsure || !tree.shownChildren(node).some((child) => child.instead)) return;
    context.font = `italic 11px ${this.font}`;
    context.fillText(this.#cut(node.unsure, this.cardWidth), x + CARD.column, y + CARD.row - 4);
  }

  #label(node) {
    let label = this.labels.get(node.node_id);
    if (label === undefined) {
      label = this.#fitted(node, this.cardWidth - COUNTS - 26);
      this.labels.set(node.node_id, label);
    }
    return label;
  }

  // What a sibling's label begins with too goes before what tells them apart.
  #fitted({ label, shared }, width) {
    const own = label.slice(shared.length);
    const room = width - this.context.measureText(own).width;
    if (room >= LEAST_SHARED) return this.#cut(shared, room) + own;
    return this.#cut(shared ? `…${own}` : own, width);
  }

  #cut(text, width) {
    const characters = [...text.slice(0, 160)];
    if (characters.length === [...text].length && this.#fits(text, width)) return text;
    while (characters.length && !this.#fits(`${characters.join("")}…`, width)) characters.pop();
    return `${characters.join("").trimEnd()}…`;
  }

  #fits(text, width) {
    return this.context.measureText(text).width <= width;
  }
}
