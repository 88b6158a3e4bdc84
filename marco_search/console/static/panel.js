// Details of the selected node.
import { candidateTable, element, tokenRow, unpack } from "./tokens.js";

const MOST_ROLLOUTS = 12; // listed for one node
const REST_MS = 80; // that a reader stays at a node before its tokens are asked for

export class Panel {
  // `fetchTokens(nodeId)` resolves to the node's tokens and a vocabulary, as in docs/console.md.
  constructor(place, fetchTokens) {
    this.place = place;
    this.fetchTokens = fetchTokens;
    this.known = new Map();
    this.turn = 0; // of the last node asked for: an answer that comes late is dropped
  }

  async #tokens(parts, turn) {
    if (!parts.every((id) => this.known.has(id))) {
      await new Promise((rested) => setTimeout(rested, REST_MS));
      if (turn !== this.turn) return [];
    }
    for (const id of parts.filter((one) => !this.known.has(one))) {
      const found = await this.fetchTokens(id);
      this.known.set(id, unpack(found.tokens, found.vocabulary));
    }
    return parts.flatMap((id) => this.known.get(id));
  }

  async show(tree, node) {
    const turn = ++this.turn;
    const body = element("div", { class: "tokens-place" });
    const rollouts = tree.through(node);
    this.place.replaceChildren(
      heading(tree, node),
      facts(tree, node, rollouts[0]),
      ...(node.instead ? [element("p", { class: "fork" }, `A fork: ${node.instead}`)] : []),
      body,
      rolloutList(rollouts),
    );
    if (node.action === "root") {
      body.append(element("p", { class: "muted" }, "The prompt. Everything grows from here."));
      return;
    }
    if (!node.tokens) {
      body.append(element("p", { class: "node-text" }, node.text));
      body.append(element("p", { class: "muted" }, "Put in by the search, not generated."));
      return;
    }
    body.append(element("p", { class: "node-text muted" }, node.text));
    try {
      const tokens = await this.#tokens(node.parts, turn);
      if (turn === this.turn) body.replaceChildren(...withTokens(tokens));
    } catch (error) {
      if (turn === this.turn) body.append(element("p", { class: "bad" }, `No tokens: ${error.message}`));
    }
  }
}

function heading(tree, node) {
  const mark = tree.winning.has(node.node_id) ? " · on the best path" : "";
  const kind = node.action.replace("_", "-");
  const first = node.parts[0];
  const name = first === node.node_id ? `Node ${first}` : `Nodes ${first} to ${node.node_id}`;
  return element("h2", {}, name, element("small", {}, ` ${kind}${mark}`));
}

function facts(tree, node, first) {
  const value = tree.values.get(node.node_id);
  const shown = [
    ["Visits", String(tree.visits.get(node.node_id) ?? 0)],
    ["Value", value === undefined ? "–" : value.toFixed(4)],
    ["Confidence", node.confidence === null ? "–" : node.confidence.toFixed(4)],
    ["Round", String(node.round)],
    ["Depth", String(node.depth)],
    ["Tokens", String(node.tokens)],
    ["Seed", first && node.action !== "root" ? String(first.seed) : "–"],
  ];
  const list = element("dl", { class: "facts" });
  for (const [name, text] of shown) {
    list.append(element("div", {}, element("dt", {}, name), element("dd", {}, text)));
  }
  return list;
}

function withTokens(tokens) {
  const detail = element("div", { class: "token-detail", "aria-live": "polite" });
  const { row, choose } = tokenRow(tokens, (token) => {
    const text = `Confidence ${token.confidence.toFixed(4)}, log-prob ${token.logprob.toFixed(4)}`;
    detail.replaceChildren(element("p", {}, text), candidateTable(token));
  });
  // The least certain token is what a reader looks for first.
  const least = tokens.reduce((at, token, i) => (token.confidence < tokens[at].confidence ? i : at), 0);
  choose(least, false);
  return [row, legend(), detail];
}

function legend() {
  const place = element("p", { class: "conf-legend" }, "Confidence ");
  const classes = ["≥ .95", "≥ .8", "≥ .6", "≥ .35", "less"];
  classes.forEach((name, i) => place.append(element("span", { class: `conf-${i}` }, name), " "));
  return place;
}

function rolloutList(rollouts) {
  const details = element("details", { class: "rollouts" });
  details.append(element("summary", {}, `Rollouts through it: ${rollouts.length}`));
  const list = element("ul");
  for (const rollout of rollouts.slice(0, MOST_ROLLOUTS)) {
    let end = rollout.answer === null ? `no answer (${rollout.finish})` : `→ ${rollout.answer}`;
    if (rollout.scores) end += `, scores ${rollout.scores.map((one) => one.toFixed(2)).join(" ")}`;
    if (rollout.error) end += `, ${rollout.error}`;
    const text = `#${rollout.rollout_id}, round ${rollout.round}, seed ${rollout.seed}, value `;
    list.append(element("li", {}, `${text}${rollout.value.toFixed(3)} ${end}`));
  }
  if (rollouts.length > MOST_ROLLOUTS) {
    list.append(element("li", { class: "muted" }, `and ${rollouts.length - MOST_ROLLOUTS} more`));
  }
  details.append(list);
  return details;
}
