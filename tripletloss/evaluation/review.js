const data = JSON.parse(document.getElementById("data").textContent);
const key = "suspects " + data.sha256;
const rows = [...document.querySelectorAll(".suspect")];
let at = 0;
let chosen = {};
try { chosen = JSON.parse(localStorage.getItem(key)) || {}; } catch { chosen = {}; }

function show() {
  let left = 0;
  rows.forEach((row, number) => {
    const choice = chosen[data.suspects[number].image];
    if (!choice) left += 1;
    row.classList.toggle("current", number === at);
    row.classList.toggle("done", Boolean(choice));
    for (const button of row.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.value === choice));
  });
  document.getElementById("left").textContent = left ? `${left} of ${rows.length} left` : `all ${rows.length} decided`;
}
function go(number) {
  at = Math.max(0, Math.min(rows.length - 1, number));
  show();
  rows[at].scrollIntoView({ block: "center" });
}
function choose(number, choice) {
  chosen[data.suspects[number].image] = choice;
  try { localStorage.setItem(key, JSON.stringify(chosen)); } catch { document.getElementById("lost").hidden = false; }
  show();
}
rows.forEach((row, number) => {
  for (const button of row.querySelectorAll("button")) {
    button.addEventListener("click", () => { at = number; choose(number, button.value); });
  }
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const choice = { 1: "right", 2: "other", 3: "drop" }[event.key];
  if (choice) { choose(at, choice); go(at + 1); }
  else if (event.key === "ArrowDown" || event.key === "ArrowRight") go(at + 1);
  else if (event.key === "ArrowUp" || event.key === "ArrowLeft") go(at - 1);
  else return;
  event.preventDefault();
});
document.getElementById("save").addEventListener("click", () => {
  const decisions = data.suspects.filter((one) => Object.hasOwn(chosen, one.image))
    .map((one) => ({ image: one.image, choice: chosen[one.image], other: one.other }));
  const text = JSON.stringify({ list: data.list, sha256: data.sha256, decisions }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
});
show();
