// Styles to choose from, as radio buttons or checkboxes with pictures; props.value: the id, or ids in lines.
const cards = element.querySelector(".cards"), none = element.querySelector(".none");
const find = element.querySelector(".find"), name = "picker-" + Math.random().toString(36).slice(2);
let drawn = "";

function chosen() {
  return (props.value || "").split("\n").filter(Boolean);
}

function draw() {
  if (!props.items) return; // of a tab that is being opened; they come
  element.querySelector("legend").textContent = props.legend;
  find.hidden = !props.searchable;
  const now = JSON.stringify(props.items);
  if (now !== drawn) {
    drawn = now;
    cards.replaceChildren(...props.items.map(card));
  }
  const now_there = chosen().map((id) => props.items.find((item) => item.picture && id.startsWith(item.picture))?.id || id);
  if (now_there.join("\n") !== (props.value || "")) props.value = now_there.join("\n");
  for (const input of cards.querySelectorAll("input")) input.checked = chosen().includes(input.value);
  none.textContent = props.items.length ? "No style has these words." : "No styles yet.";
  filter();
}

function card(item) {
  const label = document.createElement("label"), input = document.createElement("input");
  const picture = document.createElement("img"), title = document.createElement("span"), note = document.createElement("small");
  input.type = props.multiple ? "checkbox" : "radio";
  input.name = name;
  input.value = item.id;
  picture.src = item.url;
  picture.alt = "";
  title.textContent = item.name;
  note.textContent = item.note;
  label.append(input, picture, title, note);
  return label;
}

function filter() {
  const words = find.value.trim().toLowerCase();
  let shown = 0;
  for (const label of cards.children) {
    label.hidden = !label.textContent.toLowerCase().includes(words);
    shown += !label.hidden;
  }
  none.hidden = shown > 0;
}

cards.addEventListener("change", () => {
  props.value = Array.from(cards.querySelectorAll("input:checked"), (input) => input.value).join("\n");
  trigger("input");
});
find.addEventListener("input", filter);
watch(["value", "items"], draw);
draw();
