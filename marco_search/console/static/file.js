// The self-contained file: everything is in the page already.
import { Explorer } from "./explorer.js";

const stored = JSON.parse(document.getElementById("document").textContent);
if (stored.nodes.length) {
  const { tokens, vocabulary } = stored;
  const root = document.getElementById("explorer");
  const fetchTokens = async (id) => ({ tokens: tokens[id], vocabulary });
  globalThis.explorer = new Explorer(root, stored, fetchTokens);
}
