// Where each style goes: words, points, a box or paint on the photograph; props.value: all of it as JSON.
const SIDE = 1024, LATER = 250, STEP = 0.02;
const HINTS = {
  everywhere: "The whole photograph gets this style.",
  words: "Say in words what gets the style; it is found and shown in color.",
  points: "Click what gets the style; with “not this”, what stays as it is.",
  box: "Drag a box around what gets the style.",
  brush: "Paint what gets the style; erase what is too much.",
};
const $ = (query) => element.querySelector(query), all = (query) => [...element.querySelectorAll(query)];
const stage = $(".stage"), photo = $(".photo"), marks = $(".marks"), context = marks.getContext("2d");
const overlay = new Image();
let looking = false, regions, cross = null, penDown = false, dragging = false, later = 0;

function fresh() {
  return { where: "everywhere", words: "", points: [], box: null, paint: null, before: [] };
}

function here() {
  return regions[props.active];
}

function reset() {
  regions = props.colors.map(fresh);
  cross = null;
  overlay.removeAttribute("src");
  photo.src = props.photo;
  stage.hidden = !props.photo;
  clearTimeout(later);
  later = setTimeout(keep, 0); // after what came with the photograph
  draw();
}

photo.addEventListener("load", () => {
  stage.style.setProperty("--aspect", photo.naturalWidth / photo.naturalHeight);
  const scale = Math.min(1, SIDE / Math.max(photo.naturalWidth, photo.naturalHeight));
  marks.width = Math.max(1, Math.round(photo.naturalWidth * scale));
  marks.height = Math.max(1, Math.round(photo.naturalHeight * scale));
  draw();
});
overlay.addEventListener("load", draw);

function draw() {
  const region = here(), place = props.photo ? region.where : "none";
  for (const input of all("input[name=where]")) input.checked = input.value === region.where;
  for (const part of all(".bar, .hint")) part.hidden = !props.photo;
  $(".phrase").hidden = place !== "words";
  $(".signs").hidden = place !== "points";
  $(".pens").hidden = $(".wide").hidden = place !== "brush";
  $(".undo").hidden = $(".clear").hidden = !["points", "box", "brush"].includes(place);
  if ($(".phrase").value !== region.words) $(".phrase").value = region.words;
  $(".hint").textContent = looking && region.where !== "brush" ? "looking …" : HINTS[region.where];
  stage.style.touchAction = ["box", "brush"].includes(place) ? "none" : "";
  stage.style.cursor = ["points", "box", "brush"].includes(place) ? "crosshair" : "";
  context.clearRect(0, 0, marks.width, marks.height);
  if (overlay.complete && overlay.naturalWidth) context.drawImage(overlay, 0, 0, marks.width, marks.height);
  regions.forEach((each, index) => {
    if (each.where === "brush" && each.paint) {
      context.globalAlpha = 0.5;
      context.drawImage(each.paint, 0, 0);
      context.globalAlpha = 1;
    }
    if (each.where === "box" && each.box) rectangle(each.box, props.colors[index]);
  });
  if (region.where === "points") for (const [x, y, sign] of region.points) dot(x, y, sign);
  if (cross && document.activeElement === stage) plus(...cross);
}

function rectangle([x0, y0, x1, y1], color) {
  context.lineWidth = marks.width / 200;
  context.strokeStyle = color;
  context.strokeRect(x0 * marks.width, y0 * marks.height, (x1 - x0) * marks.width, (y1 - y0) * marks.height);
}

function dot(x, y, sign) {
  const radius = marks.width / 70;
  context.beginPath();
  context.arc(x * marks.width, y * marks.height, radius, 0, 7);
  context.fillStyle = sign ? props.colors[props.active] : "#222";
  context.strokeStyle = "white";
  context.lineWidth = radius / 3;
  context.fill();
  context.stroke();
}

function plus(x, y) {
  const reach = marks.width / 30;
  for (const [color, width] of [["black", 4], ["white", 2]]) {
    context.beginPath();
    context.moveTo(x * marks.width - reach, y * marks.height);
    context.lineTo(x * marks.width + reach, y * marks.height);
    context.moveTo(x * marks.width, y * marks.height - reach);
    context.lineTo(x * marks.width, y * marks.height + reach);
    context.strokeStyle = color;
    context.lineWidth = (width * marks.width) / 500;
    context.stroke();
  }
}

function remember() {
  const { points, box, paint } = here();
  here().before.push({ points: [...points], box, paint: paint && copy(paint) });
  here().before.splice(0, here().before.length - 20);
}

function copy(canvas) {
  const other = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  other.getContext("2d").drawImage(canvas, 0, 0);
  return other;
}

function stroke([x0, y0], [x1, y1]) {
  const region = here();
  region.paint ??= Object.assign(document.createElement("canvas"), { width: marks.width, height: marks.height });
  const pen = region.paint.getContext("2d");
  pen.globalCompositeOperation = $("input[name=pen]:checked").value === "1" ? "source-over" : "destination-out";
  pen.strokeStyle = props.colors[props.active];
  pen.lineCap = "round";
  pen.lineWidth = ($(".width").value / 100) * Math.min(marks.width, marks.height);
  pen.beginPath();
  pen.moveTo(x0 * marks.width, y0 * marks.height);
  pen.lineTo(x1 * marks.width + 0.01, y1 * marks.height);
  pen.stroke();
}

function begin(at) {
  const region = here();
  if (region.where === "points") {
    remember();
    region.points.push([...at, Number($("input[name=sign]:checked").value)]);
    tell();
  } else if (region.where === "box") {
    remember();
    region.corner = at;
    region.box = null;
  } else if (region.where === "brush") {
    remember();
    stroke(at, at);
  }
  draw();
}

function move(from, to) {
  const region = here();
  if (region.where === "box" && region.corner) {
    const [[x0, y0], [x1, y1]] = [region.corner, to];
    region.box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
  }
  if (region.where === "brush") stroke(from, to);
  draw();
}

function end() {
  const region = here();
  if (region.where === "box") {
    region.corner = null;
    const [x0, y0, x1, y1] = region.box || [0, 0, 0, 0];
    if (x1 - x0 < 0.01 || y1 - y0 < 0.01) region.box = null;
  }
  if (["box", "brush"].includes(region.where)) tell();
  draw();
}

function place(event) {
  const box = marks.getBoundingClientRect(), within = (value) => Math.min(1, Math.max(0, value));
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
}

stage.addEventListener("pointerdown", (event) => {
  if (event.button || !props.photo) return;
  event.preventDefault();
  stage.focus({ preventScroll: true });
  if (["box", "brush"].includes(here().where)) stage.setPointerCapture(event.pointerId);
  dragging = true;
  cross = place(event);
  begin(cross);
});
stage.addEventListener("pointermove", (event) => {
  if (!dragging) return;
  const to = place(event);
  move(cross, to);
  cross = to;
});
for (const name of ["pointerup", "pointercancel"]) {
  stage.addEventListener(name, () => {
    if (dragging) end();
    dragging = false;
  });
}
stage.addEventListener("keydown", (event) => {
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in ways) {
    const from = cross || [0.5, 0.5], reach = STEP * (event.shiftKey ? 5 : 1);
    cross = from.map((value, axis) => Math.min(1, Math.max(0, value + ways[event.key][axis] * reach)));
    if (penDown) move(from, cross);
  } else if (event.key === " ") {
    cross = cross || [0.5, 0.5];
    if (penDown) end();
    else begin(cross);
    penDown = !penDown && ["box", "brush"].includes(here().where);
  } else return;
  event.preventDefault();
  draw();
});
stage.addEventListener("blur", () => {
  if (penDown) end();
  penDown = false;
  draw();
});
stage.addEventListener("focus", draw);

for (const input of all("input[name=where]")) {
  input.addEventListener("change", () => {
    here().where = input.value;
    tell();
    draw();
  });
}
$(".phrase").addEventListener("input", () => {
  here().words = $(".phrase").value;
  tell();
});
$(".undo").addEventListener("click", () => {
  Object.assign(here(), here().before.pop() || {});
  tell();
  draw();
});
$(".clear").addEventListener("click", () => {
  remember();
  Object.assign(here(), { points: [], box: null, paint: null });
  tell();
  draw();
});

function keep() {
  props.value = JSON.stringify(regions.map(({ where, words, points, box, paint }) => ({
    where, words, points, box, paint: where === "brush" && paint ? paint.toDataURL("image/png") : null,
  })));
}

// The value is there at once, for whoever presses Restyle next; looking waits until the hand rests.
function tell() {
  keep();
  clearTimeout(later);
  later = setTimeout(() => {
    looking = true;
    draw();
    trigger("input");
  }, LATER);
}

watch("photo", reset);
watch("active", draw);
watch("looked", () => {
  looking = false;
  draw();
});
watch("overlay", () => {
  if (props.overlay) overlay.src = props.overlay;
  else overlay.removeAttribute("src");
  draw();
});
reset();
