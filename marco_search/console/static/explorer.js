// Drawing, panel, playback and keyboard together.
import { Drawing } from "./drawing.js";
import { Panel } from "./panel.js";
import { Playback } from "./playback.js";
import { Tree } from "./tree.js";

export class Explorer {
  constructor(root, data, fetchTokens) {
    root.hidden = false;
    this.root = root;
    this.frame = root.querySelector(".frame");
    this.current = root.querySelector("#current");
    this.tree = new Tree(data);
    this.answers = data.answers;
    this.drawing = new Drawing(this.frame, this.tree, (node) => this.select(node));
    this.panel = new Panel(root.querySelector("#panel"), fetchTokens);
    this.playback = new Playback(root, this.tree.rounds, (round) => this.#showRound(round));
    this.select(this.tree.nodes[0], false);
    this.drawing.open(this.#winner());
    this.#listen();
  }

  // The same job after more rounds.
  update(data) {
    const id = this.selected.node_id;
    this.tree = new Tree(data);
    this.answers = data.answers;
    this.drawing.setTree(this.tree);
    this.playback.setRounds(this.tree.rounds);
    this.select(this.tree.byId.get(id), false);
  }

  select(node, move = true) {
    if (!node) return;
    this.selected = node;
    this.drawing.selected = node;
    this.drawing.redraw();
    if (move) this.drawing.show(node);
    this.#announce(node);
    this.panel.show(this.tree, node);
  }

  markAnswer(rank) {
    const same = this.marked === rank;
    this.marked = same ? null : rank;
    const answer = this.answers.find((one) => one.rank === this.marked);
    this.drawing.marked = answer ? this.tree.on(answer.rollouts) : new Set();
    for (const button of document.querySelectorAll("[data-answer]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.answer) === this.marked));
    }
    this.drawing.redraw();
    if (!answer) return;
    const paths = this.tree.rollouts.filter((one) => answer.rollouts.includes(one.rollout_id));
    const best = paths.reduce((a, b) => (b.path_confidence > a.path_confidence ? b : a));
    this.select(this.tree.byId.get(best.path.at(-1)));
  }

  #showRound(round) {
    this.tree.setRound(round);
    // The selected node may not exist in this round.
    let node = this.selected;
    while (node && !this.tree.has(node)) node = this.tree.parent(node);
    if (node) this.select(node, false);
    this.drawing.redraw();
  }

  // For screen readers: the selected node, its position and its content.
  #announce(node) {
    const siblings = this.tree.siblings(node);
    const value = this.tree.values.get(node.node_id);
    const parts = [
      node.label,
      `${this.tree.visits.get(node.node_id) ?? 0} visits`,
      value === undefined ? "no value" : `value ${value.toFixed(3)}`,
    ];
    if (node.instead) parts.push(`a fork: ${node.instead}`);
    if (this.tree.winning.has(node.node_id)) parts.push("on the best path");
    this.current.textContent = parts.join(", ");
    this.current.dataset.node = node.node_id;
    this.current.setAttribute("aria-level", node.depth + 1);
    this.current.setAttribute("aria-setsize", siblings.length);
    this.current.setAttribute("aria-posinset", siblings.indexOf(node) + 1);
  }

  #winner() {
    const path = this.tree.winningPath.map((id) => this.tree.byId.get(id));
    return path.filter((node) => node && this.tree.has(node)).at(-1);
  }

  #listen() {
    const playback = this.playback;
    const actions = {
      first: () => playback.step(-playback.rounds),
      previous: () => playback.step(-1),
      play: () => playback.toggle(),
      next: () => playback.step(1),
      last: () => playback.step(playback.rounds),
      fit: () => this.drawing.fit(),
      in: () => this.drawing.zoomBy(1.4),
      out: () => this.drawing.zoomBy(1 / 1.4),
      winner: () => this.select(this.#winner()),
    };
    this.root.addEventListener("click", (event) => {
      const name = event.target.closest("[data-do]")?.dataset.do;
      if (name) actions[name]();
    });
    const keys = {
      ArrowRight: () => this.select(this.tree.shownChildren(this.selected)[0]),
      ArrowLeft: () => this.select(this.tree.parent(this.selected)),
      ArrowUp: () => this.select(this.tree.beside(this.selected, -1)),
      ArrowDown: () => this.select(this.tree.beside(this.selected, 1)),
      Home: () => this.select(this.tree.nodes[0]),
      End: actions.winner,
      Enter: () => this.drawing.show(this.selected, true),
      "+": actions.in,
      "=": actions.in,
      "-": actions.out,
      0: actions.fit,
      "[": actions.previous,
      "]": actions.next,
      " ": actions.play,
    };
    this.frame.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
    this.frame.addEventListener("pointerdown", () => this.frame.focus({ preventScroll: true }));
    document.addEventListener("click", (event) => {
      const button = event.target.closest("[data-answer]");
      if (button) this.markAnswer(Number(button.dataset.answer));
    });
    document.addEventListener("themechange", () => this.drawing.readColours());
  }
}
