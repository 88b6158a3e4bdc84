// The tree's rows, panel, playback and keyboard together.
import { Panel } from "./panel.js";
import { Playback } from "./playback.js";
import { Tree } from "./tree.js";

const MARGIN = 90; // pixels kept above and below a row that is scrolled to

export class Explorer {
  constructor(root, data, fetchTokens) {
    this.root = root;
    this.frame = root.querySelector(".frame");
    this.rank = null; // of the answer whose paths are marked
    this.marked = []; // ids of the rollouts whose paths are
    this.#read(data);
    this.panel = new Panel(root.querySelector("#panel"), fetchTokens);
    this.playback = new Playback(root, this.tree.rounds, (round) => this.#showRound(round));
    this.select(this.tree.nodes[0], false);
    this.#reveal(this.#winner());
    this.#listen();
  }

  // The same job after more rounds.
  update(data) {
    const id = this.selected.node_id;
    this.#read(data);
    this.playback.setRounds(this.tree.rounds);
    this.#mark();
    this.select(this.tree.byId.get(id), false);
  }

  #read(data) {
    this.tree = new Tree(data);
    this.answers = data.answers;
    // In the order of the page.
    this.rows = new Map();
    for (const row of this.frame.querySelectorAll(".node")) {
      const node = this.tree.byId.get(Number(row.id.slice("node-".length)));
      if (node) this.rows.set(node, row);
    }
  }

  select(node, move = true) {
    if (!this.rows.has(node)) return;
    this.rows.get(this.selected)?.setAttribute("aria-selected", "false");
    this.selected = node;
    const row = this.rows.get(node);
    row.setAttribute("aria-selected", "true");
    this.frame.setAttribute("aria-activedescendant", row.id);
    if (move) this.#reveal(node);
    this.panel.show(this.tree, node);
  }

  // Scrolls the frame, not the page.
  #reveal(node) {
    const row = this.rows.get(node)?.getBoundingClientRect();
    if (!row) return;
    const { top, bottom } = this.frame.getBoundingClientRect();
    const margin = Math.min(MARGIN, (bottom - top) / 3);
    this.frame.scrollTop += Math.min(0, row.top - top - margin) + Math.max(0, row.bottom - bottom + margin);
  }

  markAnswer(rank) {
    this.rank = this.rank === rank ? null : rank;
    const answer = this.answers.find((one) => one.rank === this.rank);
    this.mark(answer?.rollouts ?? [], answer?.best_rollout);
  }

  // Marks the paths of these rollouts, and selects where one of them ended.
  mark(ids, best = ids[0]) {
    this.marked = ids;
    this.#mark();
    const shown = this.tree.rollouts.find((one) => one.rollout_id === best);
    if (shown) this.select(this.tree.byId.get(shown.path.at(-1)));
  }

  #mark() {
    const marked = this.tree.on(this.marked);
    this.frame.classList.toggle("marking", this.marked.length > 0);
    for (const [node, row] of this.rows) row.classList.toggle("marked", marked.has(node.node_id));
    for (const button of document.querySelectorAll("[data-answer]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.answer) === this.rank));
    }
    this.root.querySelector("[data-do=unmark]").hidden = this.marked.length === 0;
  }

  #showRound(round) {
    this.tree.setRound(round);
    for (const [node, row] of this.rows) {
      row.parentElement.hidden = !this.tree.has(node);
      const [counts] = row.children;
      const visits = this.tree.visits.get(node.node_id) ?? 0;
      const text = `${visits} ${this.tree.values.get(node.node_id)?.toFixed(3) ?? "–"}`;
      if (counts.textContent !== text) counts.textContent = text; // else thousands are laid out again
      counts.style.setProperty("--value", this.tree.relativeValue(node) ?? 0);
    }
    // The selected node may not exist in this round.
    let node = this.selected;
    while (node && !this.tree.has(node)) node = this.tree.parent(node);
    if (node) this.select(node, false);
  }

  #shown() {
    return [...this.rows.keys()].filter((node) => this.tree.has(node));
  }

  #winner() {
    const path = this.tree.winningPath.map((id) => this.tree.byId.get(id));
    return path.filter((node) => node && this.tree.has(node)).at(-1);
  }

  #step(by) {
    const shown = this.#shown();
    this.select(shown[shown.indexOf(this.selected) + by]);
  }

  #listen() {
    const playback = this.playback;
    const actions = {
      first: () => playback.step(-playback.rounds),
      previous: () => playback.step(-1),
      play: () => playback.toggle(),
      next: () => playback.step(1),
      last: () => playback.step(playback.rounds),
      winner: () => this.select(this.#winner()),
      unmark: () => this.markAnswer(this.rank),
    };
    this.root.addEventListener("click", (event) => {
      const name = event.target.closest("[data-do]")?.dataset.do;
      if (name) actions[name]();
    });
    const keys = {
      ArrowRight: () => this.select(this.#shown().find((node) => this.tree.parent(node) === this.selected)),
      ArrowLeft: () => this.select(this.tree.parent(this.selected)),
      ArrowUp: () => this.#step(-1),
      ArrowDown: () => this.#step(1),
      Home: () => this.select(this.tree.nodes[0]),
      End: actions.winner,
      "[": actions.previous,
      "]": actions.next,
      " ": actions.play,
    };
    this.frame.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
    this.frame.addEventListener("click", (event) => {
      const row = event.target.closest(".node");
      if (row) this.select(this.tree.byId.get(Number(row.id.slice("node-".length))), false);
    });
    document.addEventListener("click", (event) => {
      const button = event.target.closest("[data-answer]");
      if (button) this.markAnswer(Number(button.dataset.answer));
    });
  }
}
