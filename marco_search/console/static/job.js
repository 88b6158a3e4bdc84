// One job: its tree, refreshed until it has ended.
import { Explorer } from "./explorer.js";
import { follow } from "./live.js";

const address = location.pathname.replace(/\/$/, "");
const place = document.getElementById("explorer");
let explorer = null;
let drawn = -1; // rounds in the tree
let settled = false; // the tree is that of the job's end

const heading = () => document.getElementById("heading").dataset;

async function get(url, headers = {}) {
  const answer = await fetch(url, { headers });
  if (answer.status === 204) return null; // not its turn yet
  if (!answer.ok) throw new Error(`the console answered ${answer.status}`);
  return answer.json();
}

// `fresh`: the page as it is now, which has the rows.
async function draw(fresh = document) {
  const { rounds, final } = heading();
  if (settled || (Number(rounds) === drawn && final === "no")) return;
  const data = await get(`${address}/tree.json`, fresh === document ? {} : { "X-Refresh": "1" });
  if (data === null) return;
  if (data.nodes.length) {
    document.getElementById("no-tree")?.remove();
    place.hidden = false;
    const rows = [...fresh.getElementById("frame").children];
    if (fresh !== document) document.getElementById("frame").replaceChildren(...rows);
    if (explorer) explorer.update(data);
    else explorer = new Explorer(place, data, (id) => get(`${address}/nodes/${id}.json`));
    globalThis.explorer = explorer;
  }
  drawn = Number(rounds);
  settled = final === "yes";
}

await draw();
// A sample of a data set leads to its rollout.
const rollout = location.hash.match(/^#rollout-(\d+)$/);
if (rollout && explorer) {
  explorer.mark([Number(rollout[1])]);
  place.scrollIntoView();
}
follow(() => !settled, draw);
