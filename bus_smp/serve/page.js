// The page: the list of images, what the program says about each, and the reader's answers on their way to the disk.

import { Viewer, packed, unpacked } from "/canvas.js";
import { Form } from "/form.js";

const NOT_CLINICAL = "Research software, not for clinical use";
const $ = (id) => document.getElementById(id);

// The secret came behind the # of the link, which no server and no log receives; a reload finds it in this tab.
if (location.hash.length > 1) {
  sessionStorage.setItem("token", location.hash.slice(1));
  sessionStorage.removeItem("place");
  history.replaceState(null, "", location.pathname);
}
const token = sessionStorage.getItem("token") || "";

let session = null;
let cases = [];
let current = -1;
let frame = 0;
let info = null;
let answers = [];
let side = 0;
let opening = 0;
let saving = false;
let lastClass = null;
let seconds = { own: 0, final: 0 };

const viewer = new Viewer($("canvas"), { changed: () => maskChanged(), say: (words) => say(words) });
const form = new Form($("form"), { changed: () => keep() });

// ---- talking to the program

class Refused extends Error {}

async function ask(path, { body, kind = "json", retries = 30 } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      body,
      headers: { "X-Bus-Smp-Link": token },
      cache: "no-store",
    });
  } catch {
    throw new Refused("The program cannot be reached.\nStart bus-smp serve again and open its new link. What you have not saved is kept in this tab.");
  }
  if (response.status === 503 && retries) {
    say("Busy: waiting for the model ...");
    await new Promise((done) => setTimeout(done, 1000));
    return ask(path, { body, kind, retries: retries - 1 });
  }
  if (response.status === 410 && cases[current]?.file && retries) {
    await upload(cases[current]);
    return ask(path, { body, kind, retries: 0 });
  }
  if (!response.ok) {
    let words = `The program answered ${response.status}.`;
    try {
      const { error, hint } = await response.json();
      words = hint ? `${error}\n${hint}` : error;
    } catch {}
    throw new Refused(words);
  }
  return kind === "json" ? response.json() : kind === "bytes" ? new Uint8Array(await response.arrayBuffer()) : response.blob();
}

async function upload(one) {
  if (one.file.size > session.most_bytes) throw new Refused(`${one.name}: larger than ${session.most_bytes >> 20} MB.`);
  const found = await ask(`/api/files?name=${encodeURIComponent(one.file.name)}`, { body: one.file });
  if (one.id) return;
  // the panes of one file are images of their own
  const [first, ...others] = found;
  Object.assign(one, first);
  cases.splice(cases.indexOf(one) + 1, 0, ...others.map((other) => ({ ...other, file: one.file, done: false })));
  listCases();
}

const place = () => `/api/cases/${cases[current].id}/${frame}`;

// ---- words on the page

function say(words) {
  $("status").textContent = words || "";
}

function message(words, error = false) {
  $("message").textContent = words || "";
  $("message").hidden = !words;
  $("message").classList.toggle("error", error);
}

function add(parent, tag, text, className = "") {
  const one = document.createElement(tag);
  one.textContent = text;
  if (className) one.className = className;
  parent.append(one);
  return one;
}

function listCases() {
  const list = $("cases");
  list.replaceChildren();
  cases.forEach((one, place) => {
    const button = add(add(list, "li", ""), "button", `${one.done ? "\u2713 " : one.bad ? "\u26a0 " : ""}${one.name}`);
    button.type = "button";
    if (one.done) add(button, "span", " (done)", "unseen");
    button.setAttribute("aria-current", String(place === current));
    button.addEventListener("click", () => open(place));
  });
  const done = cases.filter((one) => one.done).length;
  $("progress").textContent = cases.length ? `${done} of ${cases.length} done` : "No images yet";
  // only the list is scrolled, not the page
  const here = list.children[current];
  if (here) list.scrollTop = here.offsetTop - list.offsetTop - list.clientHeight / 3;
}

const percent = (value) => `${(100 * value).toFixed(0)} %`;

function lengths(lesion) {
  const unit = info.pixel_mm ? "mm" : "px";
  const digits = info.pixel_mm ? 1 : 0;
  const number = (value) => value.toFixed(digits);
  return [
    ["Width x height", `${number(lesion.width)} x ${number(lesion.height)} ${unit}`],
    ["Longest", `${number(lesion.longest)} ${unit}, ${lesion.angle.toFixed(0)}\u00b0 to the horizontal`],
    ["Orientation", `${lesion.orientation} (W:H ${(lesion.width / lesion.height).toFixed(2)})`],
    ["Circularity, solidity", `${lesion.circularity.toFixed(2)}, ${lesion.solidity.toFixed(2)}`],
    ["Top below the image's edge", `${number(lesion.depth)} ${unit}`],
  ];
}

function showLesions(parent, { lesions, small }, words) {
  const old = parent.querySelector(".lesions");
  const box = document.createElement("div");
  box.className = "lesions";
  if (old) old.replaceWith(box);
  else parent.append(box);
  if (!lesions.length) add(box, "p", `${words}: none`);
  lesions.forEach((lesion, number) => {
    const name = lesions.length > 1 ? ` ${number + 1} of ${lesions.length}` : "";
    add(box, "p", `${words}${name}: ${lesion.class}`, lesion.class);
    const table = add(box, "table", "");
    for (const [key, value] of lengths(lesion)) {
      const row = add(table, "tr", "");
      add(row, "th", key).scope = "row";
      add(row, "td", value);
    }
  });
  viewer.lesions = lesions;
  viewer.draw();
  if (small) add(box, "p", `${small} smaller speck${small > 1 ? "s" : ""} below 10 pixels`, "quiet");
  if (lesions.length) add(box, "p", "Computed from the outline; the top is measured from the image's edge, not from the skin.", "quiet");
}

function showFacts() {
  const box = $("facts");
  box.replaceChildren();
  add(box, "p", `${info.width} x ${info.height} pixels`, "quiet");
  if (info.pixel_mm) {
    const [across, down] = info.pixel_mm;
    const same = Math.abs(across - down) < 0.01 * across;
    add(box, "p", `Sizes in mm: ${across.toFixed(4)}${same ? "" : ` x ${down.toFixed(4)}`} mm per pixel (${info.size_source})`, "quiet");
  } else add(box, "p", `Sizes in pixels, not mm: ${info.size_source}.`, "quiet");
  for (const note of info.notes) add(box, "p", note, "note");
}

function showAnswer() {
  const [box, verdict] = [$("answer"), $("verdict")];
  box.hidden = verdict.hidden = !answers.length;
  box.replaceChildren();
  if (!answers.length) return;
  const one = answers[side];
  const who = answers.length > 1 ? `Answer ${"AB"[side]}` : session.sources[0];
  // it stays in view next to the questions
  verdict.textContent = `${who}: ${one.label}${one.score === null ? "" : `, malignancy score ${percent(one.score)}`}`;
  verdict.className = `verdict ${one.label}`;
  for (const [kind, value] of Object.entries(one.disagreement)) add(box, "p", `The ${kind} disagree by ${percent(value)} (1 - Dice of their outlines).`, "note");
  if (one.rule) add(box, "p", `Rule: ${one.rule}`, "quiet");
  for (const line of one.worth) add(box, "p", line, "quiet");
  showLesions(box, one, "Lesion");
}

// ---- one image

async function open(next, nextFrame = 0) {
  if (next < 0 || next >= cases.length || saving) return;
  current = next;
  frame = nextFrame;
  const mine = ++opening;
  const one = cases[current];
  info = null;
  answers = [];
  side = 0;
  seconds = { own: 0, final: 0 };
  viewer.clear();
  $("name").textContent = one.name;
  for (const id of ["answer", "verdict", "form", "exports", "side"]) $(id).hidden = true;
  $("facts").replaceChildren();
  $("canvas").setAttribute("aria-label", "The ultrasound image");
  listCases();
  message("Loading ...");
  say("");
  try {
    if (!one.id) await upload(one);
    const found = await ask(place());
    const bitmap = await createImageBitmap(await ask(`${place()}/image`, { kind: "blob" }), { colorSpaceConversion: "none" });
    if (mine !== opening) return;
    info = found;
    sessionStorage.setItem("place", one.id);
    one.bad = false;
    viewer.open(bitmap, info.pixel_mm);
    $("clip").hidden = info.frames < 2;
    $("frame-slider").max = info.frames - 1;
    $("frame-slider").value = frame;
    $("frame-number").textContent = `${frame + 1} of ${info.frames}`;
    message("");
    showFacts();
    if (info.phase === "final" && session.sources.length) await reveal(mine);
    if (mine !== opening) return;
    begin();
    channel.postMessage({ open: one.id, frame, from: tab });
  } catch (error) {
    if (mine !== opening) return;
    if (!(error instanceof Refused)) console.error(error);
    one.bad = info === null;
    info = null;
    viewer.clear();
    listCases();
    message(`${error.message}\n\nJ goes to the next image.`, true);
  }
}

async function reveal(mine = opening) {
  say("The model is computing ...");
  const found = await ask(`${place()}/answer`);
  const masks = await Promise.all(found.map((_, number) => ask(`${place()}/mask/${number}`, { kind: "bytes" })));
  if (mine !== opening) return;
  answers = found.map((one, number) => ({ ...one, mask: masks[number] }));
  viewer.show(masks[0], { undoable: viewer.touched });
  // a correction goes on in the class that most of the outline has
  const marked = masks[0].reduce((counts, value) => (counts[value]++, counts), [0, 0, 0]);
  if (marked[1] + marked[2]) paint(marked[1] > marked[2] ? 1 : 2);
  $("side").hidden = answers.length < 2;
  showSide();
  say("");
}

function showSide() {
  $("side").firstChild.textContent = `Answer ${"AB"[side]} `;
  showAnswer();
}

// The form of the phase that this image is in, with what was kept of it.
function begin() {
  const kept = JSON.parse(sessionStorage.getItem(keptKey()) || "null");
  const questions = session.questions[info.phase];
  // the comment of the own answer is no comment on the final one
  const { comment, ...prefilled } = (info.phase === "final" && info.own) || {};
  form.element.reset();
  form.open(questions, { ...prefilled, ...(kept?.answers || {}) });
  $("phase").textContent = session.mode === "blind" && info.phase === "final" ? "Your final answer" : "Your answer";
  form.element.querySelector("button[type=submit]").textContent = info.phase === "own" && session.sources.length ? "Store my answer, then show the model's" : "Save and go on";
  form.element.hidden = $("exports").hidden = false;
  if (kept?.mask) {
    const mask = unpacked(kept.mask, info.width * info.height);
    if (mask) {
      viewer.show(mask, { touched: true });
      say("Your unsaved outline was brought back.");
      measure();
    }
  }
  viewer.calipers = kept?.calipers || [];
  viewer.draw();
  if (info.done) say("You have answered this image before; saving again adds a new answer.");
  // where the questions are below the image, the image is to be seen first
  const narrow = matchMedia("(max-width: 68rem)").matches;
  form.start(narrow);
  if (narrow) scrollTo(0, 0);
}

const keptKey = () => `kept:${cases[current].id}:${frame}:${info.phase}`;

// What is not saved yet stays in this tab over a reload, and nowhere else.
function keep() {
  if (!info || form.element.hidden) return;
  // the brush paints the class that the reader answers
  const given = form.answers();
  if (given.class && given.class !== lastClass) paint(given.class === "benign" ? 1 : 2);
  lastClass = given.class;
  const kept = { answers: given, calipers: viewer.calipers, mask: viewer.touched ? packed(viewer.mask) : null };
  try {
    sessionStorage.setItem(keptKey(), JSON.stringify(kept));
  } catch {
    say("This tab has no more room to keep unsaved work: save soon.");
  }
}

let measuring = 0;

function maskChanged() {
  keep();
  clearTimeout(measuring);
  measuring = setTimeout(measure, 250);
}

async function measure() {
  if (!info || !viewer.touched) return;
  const [mine, body] = [opening, viewer.mask.slice()];
  try {
    const found = await ask(`${place()}/measure`, { body });
    if (mine === opening) showLesions($("facts"), found, "Your outline");
  } catch (error) {
    say(error.message);
  }
}

async function save(event) {
  event?.preventDefault();
  if (!info || saving || form.element.hidden) return;
  const missing = form.missing();
  if (missing) {
    form.enter(form.box(missing.key));
    return say(`Not answered yet: ${missing.words}`);
  }
  saving = true;
  form.element.querySelector("button[type=submit]").disabled = true;
  const sent = { answers: form.answers(), seconds, calipers: viewer.calipers, base: side };
  const parts = [JSON.stringify(sent), "\n"];
  if (viewer.touched) parts.push(viewer.mask);
  let next = -1;
  try {
    const [phase, outlined] = [info.phase, viewer.touched];
    const result = await ask(`${place()}/${phase}`, { body: new Blob(parts) });
    sessionStorage.removeItem(keptKey());
    if (phase === "own") {
      Object.assign(info, { phase: "final", own: sent.answers });
      if (session.sources.length) await reveal();
      begin();
      if (session.sources.length) say(`Your answer is stored. This is the model's.${outlined ? " Ctrl Z brings your own outline back." : ""}`);
    } else {
      cases[current].done = info.done = true;
      listCases();
      if (info.frames === 1) next = cases.findIndex((other, place) => place > current && !other.done);
      if (info.frames === 1 && next < 0) next = cases.findIndex((other) => !other.done);
      say(next < 0 ? `Saved${result.changed ? " with your outline" : ""}.${info.frames > 1 ? "" : " All images are done."}` : "");
    }
  } catch (error) {
    say(`Not saved. ${error.message}`);
    message(`Not saved.\n${error.message}`, true);
    setTimeout(() => message(""), 6000);
  } finally {
    saving = false;
    form.element.querySelector("button[type=submit]").disabled = false;
  }
  if (next >= 0) open(next);
}

// ---- more files

function addFiles(files) {
  const images = [...files].filter((file) => !file.name.startsWith(".") && !/\.(csv|txt|json|xml|pdf|xlsx?|docx?|zip|html?|md)$/i.test(file.name));
  const bytes = images.reduce((sum, file) => sum + file.size, 0);
  const first = cases.length;
  images.sort((a, b) => (a.webkitRelativePath || a.name).localeCompare(b.webkitRelativePath || b.name, undefined, { numeric: true }));
  cases.push(...images.map((file) => ({ name: file.name, file, id: null, done: false })));
  listCases();
  const left = files.length - images.length;
  if (images.length && current < 0) open(first);
  say(`${images.length} file${images.length === 1 ? "" : "s"} added (${(bytes / 1e6).toFixed(1)} MB)${left ? `, ${left} left out: no images` : ""}.`);
}

async function dropped(items) {
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) files.push(await new Promise((done, fail) => entry.file(done, fail)));
    else {
      const reader = entry.createReader();
      for (;;) {
        const some = await new Promise((done, fail) => reader.readEntries(done, fail));
        if (!some.length) break;
        for (const one of some) await walk(one);
      }
    }
  };
  for (const entry of [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)) await walk(entry);
  addFiles(files);
}

// ---- the second tab

const tab = Math.random();
const channel = new BroadcastChannel("bus-smp-reading");
channel.addEventListener("message", ({ data }) => {
  const one = cases[current];
  if (!one || !info || data.from === tab || frame !== data.frame) return;
  if (data.open === one.id) channel.postMessage({ taken: one.id, frame, from: tab });
  if (data.taken === one.id) say("This image is open in another tab too: what is saved last counts.");
});

// ---- buttons and keys

function choose(tool) {
  viewer.tool = tool;
  document.querySelectorAll("[data-tool]").forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.tool === tool)));
  $("canvas").focus({ preventScroll: true });
}

function display(next) {
  const kinds = ["fill", "outline", "none"];
  viewer.display = next || kinds[(kinds.indexOf(viewer.display) + 1) % 3];
  $("display").firstChild.textContent = `Show: ${viewer.display} `;
  viewer.draw();
}

function hide(hidden) {
  viewer.hidden = hidden;
  viewer.draw();
}

function resize(size) {
  viewer.size = Math.min(80, Math.max(1, size));
  $("size").value = viewer.size;
  viewer.draw();
  say(`Size ${viewer.size} px`);
}

function paint(value) {
  viewer.class = value;
  $("paint").firstChild.textContent = `Paints ${viewer.class === 1 ? "benign" : "malignant"} `;
}

function otherSide() {
  if (answers.length < 2) return;
  if (viewer.touched && !confirm("Show the other answer? Your changes of this outline are lost.")) return;
  side = 1 - side;
  viewer.show(answers[side].mask);
  showSide();
}

function otherFrame(next) {
  if (info && info.frames > 1 && next >= 0 && next < info.frames) open(current, next);
}

const actions = {
  "zoom-in": () => viewer.zoom(1.25),
  "zoom-out": () => viewer.zoom(0.8),
  "zoom-fit": () => viewer.fit(true),
  undo: () => viewer.undo(),
  redo: () => viewer.undo(false),
};

const keys = {
  j: () => open(current + 1),
  k: () => open(current - 1),
  q: () => form.element.hidden || form.start(),
  i: () => $("canvas").focus(),
  o: () => display(),
  v: otherSide,
  b: () => choose("brush"),
  e: () => choose("erase"),
  f: () => choose("fill"),
  m: () => choose("measure"),
  g: () => choose("pan"),
  c: () => viewer.flip(viewer.cursor),
  Delete: () => viewer.remove(viewer.cursor),
  t: () => paint(3 - viewer.class),
  "[": () => resize(viewer.size - 2),
  "]": () => resize(viewer.size + 2),
  "+": actions["zoom-in"],
  "=": actions["zoom-in"],
  "-": actions["zoom-out"],
  ",": () => otherFrame(frame - 1),
  ".": () => otherFrame(frame + 1),
  "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, input[type=number]");
  if ($("help").open) return;
  if (event.ctrlKey || event.metaKey) {
    if (event.key === "Enter") save(event);
    else if (!typing && event.key.toLowerCase() === "z") (event.preventDefault(), viewer.undo(!event.shiftKey));
    else if (!typing && event.key.toLowerCase() === "y") (event.preventDefault(), viewer.undo(false));
    return;
  }
  if (typing || event.altKey || event.defaultPrevented) return;
  if (event.target === $("canvas")) {
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (arrow && viewer.tool === "pan") viewer.pan(-40 * arrow[0], -40 * arrow[1]);
    if (arrow) viewer.arrow(...arrow, event.shiftKey);
    else if (event.key === " ") viewer.press();
    if (arrow || event.key === " ") return event.preventDefault();
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "h") return hide(true);
  if (key === "0" && !event.target.closest("#form")) return viewer.fit(true);
  if (keys[key]) {
    event.preventDefault();
    keys[key]();
  } else if (/^\d$/.test(key) && !event.target.closest("#form") && !form.element.hidden) form.start();
});
document.addEventListener("keyup", (event) => event.key.toLowerCase() === "h" && hide(false));
window.addEventListener("blur", () => hide(false));

document.querySelectorAll("[data-tool]").forEach((one) => one.addEventListener("click", () => choose(one.dataset.tool)));
document.querySelectorAll("[data-do]").forEach((one) => one.addEventListener("click", () => actions[one.dataset.do]()));
$("previous").addEventListener("click", () => open(current - 1));
$("next").addEventListener("click", () => open(current + 1));
$("display").addEventListener("click", () => display());
$("hide").addEventListener("pointerdown", () => hide(true));
for (const name of ["pointerup", "pointerleave", "pointercancel"]) $("hide").addEventListener(name, () => hide(false));
$("opacity").addEventListener("input", (event) => ((viewer.opacity = event.target.value / 100), viewer.draw()));
$("size").addEventListener("input", (event) => resize(Number(event.target.value)));
$("paint").addEventListener("click", () => paint(3 - viewer.class));
$("side").addEventListener("click", otherSide);
$("frame-slider").addEventListener("change", (event) => otherFrame(Number(event.target.value)));
$("help-open").addEventListener("click", () => $("help").showModal());
$("form").addEventListener("submit", save);
$("add-files").addEventListener("click", () => $("files").click());
$("add-folder").addEventListener("click", () => $("folder").click());
for (const id of ["files", "folder"]) $(id).addEventListener("change", (event) => addFiles(event.target.files));
document.addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("dragging")));
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  dropped(event.dataTransfer.items).catch((error) => say(error.message));
});
// seconds in which the page was in view
setInterval(() => {
  if (info && !saving && document.visibilityState === "visible") seconds[info.phase] += 1;
}, 1000);

$("copy").addEventListener("click", async () => {
  const lines = [NOT_CLINICAL, ...[...$("facts").querySelectorAll("p, tr"), $("verdict"), ...$("answer").querySelectorAll("p, tr")].map((one) => [...one.cells || [one]].map((cell) => cell.textContent).join(": "))];
  await navigator.clipboard.writeText(`${lines.join("\n")}\n`);
  say("Copied.");
});

$("download").addEventListener("click", async () => {
  try {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await ask(`${place()}/mask.png`, { body: viewer.mask.slice(), kind: "blob" }));
    link.download = "outline-not-for-clinical-use.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    say(error.message);
  }
});

async function start() {
  const modes = { blind: "your answer first, then the model's", concurrent: "with the model's answer", none: "without a model" };
  try {
    session = await ask("/api/session");
    $("who").textContent = `${session.reader} \u00b7 ${modes[session.mode]}`;
    cases = session.cases.map((one) => ({ ...one, file: null }));
    listCases();
    // a reload comes back to the image that was open, a new link to the first that is not done
    const last = cases.findIndex((one) => one.id === sessionStorage.getItem("place"));
    if (cases.length) open(Math.max(0, last < 0 ? cases.findIndex((one) => !one.done) : last));
    else message("Drop images or a folder here, or choose them with \u201cAdd files\u201d.");
  } catch (error) {
    message(error.message, true);
  }
}
start();
