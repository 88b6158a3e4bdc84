// The tree as it stood after each round. No drawing here, and no page.

export class Tree {
  // `data` has nodes as they are drawn (the root first), rollouts and winning_path.
  constructor(data) {
    this.nodes = data.nodes;
    this.rollouts = data.rollouts;
    this.winning = new Set(data.winning_path);
    this.winningPath = data.winning_path;
    this.byId = new Map(this.nodes.map((node) => [node.node_id, node]));
    this.rounds = this.rollouts.reduce((most, rollout) => Math.max(most, rollout.round), 0);
    this.setRound(this.rounds);
  }

  // Visit counts and values as they were after `round`: they follow from the rollouts.
  setRound(round) {
    this.round = round;
    this.visits = new Map();
    const sums = new Map();
    for (const rollout of this.rollouts) {
      if (rollout.round > round || rollout.finish === "failed") continue;
      for (const id of rollout.path) {
        this.visits.set(id, (this.visits.get(id) ?? 0) + 1);
        sums.set(id, (sums.get(id) ?? 0) + rollout.value);
      }
    }
    this.values = new Map([...sums].map(([id, sum]) => [id, sum / this.visits.get(id)]));
    const all = [...this.values.values()];
    this.lowest = all.reduce((a, b) => Math.min(a, b), Infinity);
    this.highest = all.reduce((a, b) => Math.max(a, b), -Infinity);
  }

  has(node) {
    return node.round <= this.round;
  }

  // 0 for the lowest value in the tree, 1 for the highest; null before the first visit.
  relativeValue(node) {
    const value = this.values.get(node.node_id);
    if (value === undefined) return null;
    const range = this.highest - this.lowest;
    return range > 0 ? (value - this.lowest) / range : 1;
  }

  parent(node) {
    if (node.parent_id === null) return null;
    // A tree that was tampered with may lack it: its children hang from the root.
    return this.byId.get(node.parent_id) ?? this.nodes[0];
  }

  // Ids of all nodes on the paths of these rollouts.
  on(rolloutIds) {
    const wanted = new Set(rolloutIds);
    const paths = this.rollouts.filter((rollout) => wanted.has(rollout.rollout_id));
    return new Set(paths.flatMap((rollout) => rollout.path));
  }

  through(node) {
    return this.rollouts.filter((rollout) => rollout.path.includes(node.node_id));
  }
}
