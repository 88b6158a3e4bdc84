// A node's text, token by token, coloured by confidence.

// Least confidence of each class but the last; the same words stand in the legend.
const CONFIDENCE_CLASSES = [0.95, 0.8, 0.6, 0.35];

function confidenceClass(confidence) {
  const index = CONFIDENCE_CLASSES.findIndex((least) => confidence >= least);
  return `conf-${index < 0 ? CONFIDENCE_CLASSES.length : index}`;
}

const CANDIDATES = 5; // for each token
const NONE = -1; // in the place of a candidate where there are fewer

// A node's columns of tokens as one object a token.
export function unpack({ ids, texts, logprobs, confidences, ...top }, vocabulary) {
  return ids.map((id, i) => {
    const from = i * CANDIDATES;
    const best = top.top_ids.slice(from, from + CANDIDATES).map((other, j) => ({
      id: other,
      text: vocabulary[other] ?? null,
      probability: top.top_probabilities[from + j],
    }));
    return {
      id,
      text: texts[i],
      logprob: logprobs[i],
      confidence: confidences[i],
      top: best.filter((candidate) => candidate.id !== NONE),
    };
  });
}

// As on the server (marco_search.text): what would turn the text around it is spelt out.
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

function spelled(value) {
  if (typeof value !== "string") return value;
  return value.replace(CONTROL, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, spelled(value));
  }
  made.append(...children.map(spelled));
  return made;
}

// Invisible characters get a sign: a line end, a part of a character.
export function visible(text) {
  if (text === null || text === undefined) return "?";
  if (text === "") return "∅";
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣");
}

// The tokens as a row of buttons that the arrow keys walk; `onChoose` gets a token.
export function tokenRow(tokens, onChoose) {
  const row = element("div", { class: "tokens", role: "listbox", "aria-label": "Tokens" });
  const items = tokens.map((token, index) => {
    const caption = `${visible(token.text)}, confidence ${token.confidence.toFixed(3)}`;
    const attributes = {
      class: `token ${confidenceClass(token.confidence)}`,
      role: "option",
      tabindex: index ? "-1" : "0",
      title: `confidence ${token.confidence.toFixed(3)}`,
      "aria-label": caption,
      "aria-selected": "false",
    };
    const text = token.text === "" ? "∅" : token.text.replaceAll("\n", "⏎\n");
    return element("span", attributes, text);
  });
  row.append(...items);

  const choose = (index, focus) => {
    items.forEach((item, other) => {
      item.tabIndex = other === index ? 0 : -1;
      item.setAttribute("aria-selected", String(other === index));
    });
    if (focus) items[index].focus();
    onChoose(tokens[index]);
  };
  row.addEventListener("click", (event) => {
    const index = items.indexOf(event.target.closest(".token"));
    if (index >= 0) choose(index, true);
  });
  row.addEventListener("keydown", (event) => {
    const at = items.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1 };
    const ends = { Home: 0, End: items.length - 1, Enter: at, " ": at };
    const index = to[event.key] ?? ends[event.key];
    if (index === undefined || at < 0) return;
    event.preventDefault();
    if (items[index]) choose(index, true);
  });
  return { row, choose };
}

// The model's candidates for a token.
export function candidateTable(token) {
  const table = element("table", { class: "candidates" });
  const head = element("tr");
  for (const name of ["Candidate", "Probability", ""]) head.append(element("th", {}, name));
  table.append(element("thead", {}, head));
  const body = element("tbody");
  for (const candidate of token.top) {
    const chosen = candidate.id === token.id;
    const text = candidate.text === null ? `token ${candidate.id}` : visible(candidate.text);
    const name = element("td", {}, element("code", { title: `token ${candidate.id}` }, text));
    if (chosen) name.append(element("span", { class: "muted" }, " chosen"));
    body.append(
      element(
        "tr",
        chosen ? { class: "chosen" } : {},
        name,
        element("td", { class: "num" }, probability(candidate.probability)),
        element("td", { class: "barcell" }, bar(candidate.probability)),
      ),
    );
  }
  table.append(body);
  return table;
}

function probability(share) {
  return share < 0.00005 ? "< 0.0001" : share.toFixed(4);
}

function bar(share) {
  const space = "http://www.w3.org/2000/svg";
  const drawn = document.createElementNS(space, "svg");
  drawn.setAttribute("class", "bar");
  drawn.setAttribute("viewBox", "0 0 100 6");
  drawn.setAttribute("preserveAspectRatio", "none");
  drawn.setAttribute("aria-hidden", "true");
  for (const [kind, width] of [["track", 100], ["fill", 100 * Math.min(1, share)]]) {
    const rect = document.createElementNS(space, "rect");
    rect.setAttribute("class", kind);
    rect.setAttribute("width", width.toFixed(1));
    rect.setAttribute("height", "6");
    rect.setAttribute("rx", "3");
    drawn.append(rect);
  }
  return drawn;
}
