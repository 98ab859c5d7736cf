// The image with its outline: what is drawn, and the tools that change it. A mask is a Uint8Array of class indices,
// one for each pixel of the image (0 background, 1 benign, 2 malignant); nothing is ever drawn into it with soft edges.

const COLOURS = [null, [53, 208, 127], [255, 96, 96]];
const NAMES = ["background", "benign", "malignant"];
const UNDO_DEPTH = 30;

export class Viewer {
  // canvas: the element; events: changed() after the mask changed, say(words) for the status line.
  constructor(canvas, events) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.layer = document.createElement("canvas");
    this.events = events;
    this.tool = "pan";
    this.size = 12;
    this.class = 2;
    this.display = "fill";
    this.opacity = 0.45;
    this.hidden = false;
    this.pointers = new Map();
    this.clear();
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    new ResizeObserver(() => this.fit(false)).observe(canvas.parentElement);
  }

  clear() {
    this.image = this.mask = this.edges = null;
    this.width = this.height = 0;
    this.calipers = [];
    this.lesions = [];
    this.undone = [];
    this.done = [];
    this.touched = false;
    this.cursor = null;
    this.penDown = false;
    this.draw();
  }

  // image: ImageBitmap; pixelMm: [across, down] or null.
  open(image, pixelMm) {
    this.clear();
    this.image = image;
    this.width = image.width;
    this.height = image.height;
    this.pixelMm = pixelMm;
    this.mask = new Uint8Array(this.width * this.height);
    this.layer.width = this.width;
    this.layer.height = this.height;
    this.fit(true);
  }

  // A mask that was not drawn here: the model's, or one that was kept over a reload.
  show(mask, { undoable = false, touched = false } = {}) {
    if (undoable) this.remember();
    this.mask = mask.slice();
    this.touched = touched;
    this.refresh();
  }

  // ---- drawing

  fit(whole) {
    const frame = this.canvas.parentElement.getBoundingClientRect();
    this.ratio = window.devicePixelRatio || 1;
    // lines and words on the image grow with the page's letters
    this.unit = (this.ratio * parseFloat(getComputedStyle(document.documentElement).fontSize)) / 16;
    this.canvas.width = Math.max(1, Math.round(frame.width * this.ratio));
    this.canvas.height = Math.max(1, Math.round(frame.height * this.ratio));
    if (this.image && (whole || this.whole !== false)) {
      this.scale = Math.min(this.canvas.width / this.width, this.canvas.height / this.height);
      this.x = (this.canvas.width - this.width * this.scale) / 2;
      this.y = (this.canvas.height - this.height * this.scale) / 2;
      this.whole = true;
    }
    this.draw();
  }

  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    if (!this.image) return;
    const scale = Math.min(60, Math.max(0.1, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.whole = false;
    this.draw();
  }

  pan(x, y) {
    this.x += x * this.ratio;
    this.y += y * this.ratio;
    this.whole = false;
    this.draw();
  }

  // The mask changed: its fill and its outline are made again.
  refresh() {
    const { width, height, mask } = this;
    const context = this.layer.getContext("2d", { willReadFrequently: true });
    const fill = context.createImageData(width, height);
    const stripe = Math.max(3, Math.round(Math.min(width, height) / 100));
    this.edges = [null, new Path2D(), new Path2D()];
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const value = mask[i];
        if (!value) continue;
        const [red, green, blue] = COLOURS[value];
        // malignant areas are hatched, for readers who cannot tell red from green
        const strong = value === 1 || (x + y) % (3 * stripe) < stripe;
        fill.data.set([red, green, blue, strong ? 255 : 70], 4 * i);
        const path = this.edges[value];
        if (x === 0 || mask[i - 1] !== value) (path.moveTo(x, y), path.lineTo(x, y + 1));
        if (x === width - 1 || mask[i + 1] !== value) (path.moveTo(x + 1, y), path.lineTo(x + 1, y + 1));
        if (y === 0 || mask[i - width] !== value) (path.moveTo(x, y), path.lineTo(x + 1, y));
        if (y === height - 1 || mask[i + width] !== value) (path.moveTo(x, y + 1), path.lineTo(x + 1, y + 1));
      }
    }
    context.putImageData(fill, 0, 0);
    this.draw();
  }

  draw() {
    const { context, canvas } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (!this.image) return;
    context.setTransform(this.scale, 0, 0, this.scale, this.x, this.y);
    // far in, single pixels are what the tools work on
    context.imageSmoothingEnabled = this.scale < 8;
    context.drawImage(this.image, 0, 0);
    context.imageSmoothingEnabled = false;
    if (!this.hidden && this.display !== "none" && this.edges) {
      if (this.display === "fill") {
        context.globalAlpha = this.opacity;
        context.drawImage(this.layer, 0, 0);
        context.globalAlpha = 1;
      }
      context.lineWidth = (2 * this.unit) / this.scale;
      for (const value of [1, 2]) {
        context.strokeStyle = `rgb(${COLOURS[value]})`;
        context.stroke(this.edges[value]);
      }
    }
    if (!this.hidden && this.display === "outline") this.drawClasses();
    this.drawCalipers();
    if (this.cursor) this.drawCursor();
  }

  // Without the hatching, words tell the classes apart.
  drawClasses() {
    const { context } = this;
    const point = this.unit / this.scale;
    context.font = `${14 * point}px system-ui, sans-serif`;
    for (const lesion of this.lesions) {
      const [left, top, , height] = lesion.box;
      const y = top > 20 * point ? top - 5 * point : top + height + 16 * point;
      context.fillStyle = `rgb(${COLOURS[NAMES.indexOf(lesion.class)]})`;
      context.fillText(lesion.class, left, y);
    }
  }

  drawCalipers() {
    const { context } = this;
    const point = this.unit / this.scale;
    context.strokeStyle = context.fillStyle = "#ffd166";
    context.lineWidth = 2 * point;
    context.font = `${14 * point}px system-ui, sans-serif`;
    for (const line of this.calipers) {
      const [x0, y0, x1, y1] = line;
      context.beginPath();
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
      for (const [x, y] of [[x0, y0], [x1, y1]]) {
        context.moveTo(x - 5 * point, y);
        context.lineTo(x + 5 * point, y);
        context.moveTo(x, y - 5 * point);
        context.lineTo(x, y + 5 * point);
      }
      context.stroke();
      context.fillText(this.length(line), x1 + 8 * point, y1 - 8 * point);
    }
  }

  length([x0, y0, x1, y1]) {
    const [across, down] = this.pixelMm || [1, 1];
    const value = Math.hypot((x1 - x0) * across, (y1 - y0) * down);
    return this.pixelMm ? `${value.toFixed(1)} mm` : `${value.toFixed(0)} px`;
  }

  drawCursor() {
    const { context } = this;
    const radius = ["brush", "erase"].includes(this.tool) ? this.size / 2 : (6 * this.unit) / this.scale;
    context.lineWidth = (this.penDown ? 3 : 1.5) * (this.unit / this.scale);
    for (const [colour, add] of [["#000", context.lineWidth], ["#fff", 0]]) {
      context.strokeStyle = colour;
      context.beginPath();
      context.arc(this.cursor[0], this.cursor[1], radius + add, 0, 7);
      context.stroke();
    }
  }

  // ---- changing the mask

  remember() {
    this.done.push(this.mask.slice());
    if (this.done.length > UNDO_DEPTH) this.done.shift();
    this.undone = [];
  }

  undo(back = true) {
    const [from, to] = back ? [this.done, this.undone] : [this.undone, this.done];
    if (!from.length) return this.events.say(back ? "Nothing to undo." : "Nothing to do again.");
    to.push(this.mask);
    this.mask = from.pop();
    this.changed();
  }

  changed() {
    this.touched = true;
    this.refresh();
    this.events.changed();
  }

  // A disc of the brush along a line; points are in pixels of the image.
  stroke([x0, y0], [x1, y1], value) {
    const { width, height, mask } = this;
    const radius = this.size / 2;
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(0.5, radius / 2)));
    for (let step = 0; step <= steps; step++) {
      const x = x0 + ((x1 - x0) * step) / steps;
      const y = y0 + ((y1 - y0) * step) / steps;
      for (let row = Math.max(0, Math.floor(y - radius)); row <= Math.min(height - 1, y + radius); row++) {
        const half = Math.sqrt(Math.max(0, radius ** 2 - (row + 0.5 - y) ** 2));
        const start = Math.max(0, Math.ceil(x - half - 0.5));
        const end = Math.min(width - 1, Math.floor(x + half - 0.5));
        if (end >= start) mask.fill(value, row * width + start, row * width + end + 1);
      }
    }
  }

  // The pixels that are joined to the one at (x, y) and for which same(value) holds, and whether they reach the border.
  region(x, y, same, diagonal) {
    const { width, height, mask } = this;
    const seen = new Uint8Array(mask.length);
    const stack = [Math.floor(y) * width + Math.floor(x)];
    const found = [];
    let border = false;
    seen[stack[0]] = 1;
    while (stack.length) {
      const i = stack.pop();
      found.push(i);
      const column = i % width;
      const row = (i - column) / width;
      if (!column || !row || column === width - 1 || row === height - 1) border = true;
      for (let down = -1; down <= 1; down++) {
        for (let right = -1; right <= 1; right++) {
          if (!diagonal && down && right) continue;
          const [r, c] = [row + down, column + right];
          const next = r * width + c;
          if (r < 0 || c < 0 || r >= height || c >= width || seen[next] || !same(mask[next])) continue;
          seen[next] = 1;
          stack.push(next);
        }
      }
    }
    return { found, border };
  }

  at([x, y]) {
    const inside = x >= 0 && y >= 0 && x < this.width && y < this.height;
    return inside ? this.mask[Math.floor(y) * this.width + Math.floor(x)] : 0;
  }

  // The lesion at a point; without a point the only one there is.
  lesion(point) {
    if (point && this.at(point)) return this.region(...point, (value) => value > 0, true).found;
    const first = this.mask.findIndex((value) => value > 0);
    if (first < 0) return this.events.say("There is no outline.");
    const only = this.region(first % this.width, Math.floor(first / this.width), (value) => value > 0, true).found;
    const all = this.mask.reduce((count, value) => count + (value > 0), 0);
    if (only.length === all) return only;
    return this.events.say("There are several lesions: point at one, with the mouse or the arrow keys.");
  }

  remove(point) {
    const lesion = this.lesion(point);
    if (!lesion) return;
    this.remember();
    for (const i of lesion) this.mask[i] = 0;
    this.changed();
    this.events.say("Lesion deleted.");
  }

  flip(point) {
    const lesion = this.lesion(point);
    if (!lesion) return;
    const malignant = lesion.filter((i) => this.mask[i] === 2).length * 2 >= lesion.length;
    this.remember();
    for (const i of lesion) this.mask[i] = malignant ? 1 : 2;
    this.changed();
    this.events.say(`The lesion is ${NAMES[malignant ? 1 : 2]} now.`);
  }

  fill(point) {
    if (this.at(point)) return this.events.say("Fill works on a hole: point inside a closed outline.");
    if (point[0] < 0 || point[1] < 0 || point[0] >= this.width || point[1] >= this.height) return;
    const { found, border } = this.region(...point, (value) => value === 0, false);
    if (border) return this.events.say("The outline around this point is not closed.");
    const inside = new Set(found);
    const counts = [0, 0, 0];
    for (const i of found) {
      for (const next of [i - 1, i + 1, i - this.width, i + this.width]) if (!inside.has(next)) counts[this.mask[next]]++;
    }
    this.remember();
    for (const i of found) this.mask[i] = counts[2] >= counts[1] ? 2 : 1;
    this.changed();
  }

  // ---- mouse, pen, touch

  point(event) {
    const frame = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - frame.left) * this.ratio - this.x) / this.scale,
      ((event.clientY - frame.top) * this.ratio - this.y) / this.scale,
    ];
  }

  down(event) {
    if (!this.image) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) return this.endStroke(true);
    const point = this.point(event);
    this.action = event.button === 1 || this.tool === "pan" ? "pan" : this.tool;
    if (this.action === "brush" && (event.ctrlKey || event.metaKey || event.button === 2 || event.buttons & 32)) this.action = "erase";
    this.begin(point);
  }

  begin(point) {
    this.last = point;
    if (["brush", "erase"].includes(this.action)) {
      this.remember();
      this.stroke(point, point, this.action === "erase" ? 0 : this.class);
      this.refresh();
    } else if (this.action === "fill") this.fill(point);
    else if (this.action === "delete") this.remove(point);
    else if (this.action === "class") this.flip(point);
    else if (this.action === "measure") this.calipers = [...this.calipers.slice(-2), [...this.inside(point), ...this.inside(point)]];
  }

  inside([x, y]) {
    return [Math.min(this.width, Math.max(0, x)), Math.min(this.height, Math.max(0, y))];
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.image) {
      if (this.image && ["brush", "erase"].includes(this.tool)) {
        this.cursor = this.point(event);
        this.draw();
      }
      return;
    }
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) {
      const [other] = [...this.pointers.values()].filter((one) => one.pointerId !== event.pointerId);
      const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      const frame = this.canvas.getBoundingClientRect();
      this.pan((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
      this.zoom(apart(event) / Math.max(1, apart(before)), (other.clientX - frame.left) * this.ratio, (other.clientY - frame.top) * this.ratio);
      return;
    }
    if (this.action === "pan") return this.pan(event.clientX - before.clientX, event.clientY - before.clientY);
    const points = (event.getCoalescedEvents?.() || [event]).map((one) => this.point(one));
    for (const point of points.length ? points : [this.point(event)]) this.drag(point);
    this.refresh();
  }

  drag(point) {
    if (["brush", "erase"].includes(this.action)) {
      this.stroke(this.last, point, this.action === "erase" ? 0 : this.class);
      this.cursor = point;
    } else if (this.action === "measure") this.calipers.at(-1).splice(2, 2, ...this.inside(point));
    this.last = point;
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    this.endStroke(false);
  }

  endStroke(cancelled) {
    if (["brush", "erase"].includes(this.action)) {
      // a second finger turns the stroke into zooming
      if (cancelled) this.mask = this.done.pop();
      this.changed();
    } else if (this.action === "measure" && this.calipers.length) {
      const [x0, y0, x1, y1] = this.calipers.at(-1);
      if (cancelled || (x0 === x1 && y0 === y1)) this.calipers.pop();
      else this.events.say(this.length(this.calipers.at(-1)));
      this.events.changed();
      this.draw();
    }
    this.action = null;
  }

  wheel(event) {
    event.preventDefault();
    const frame = this.canvas.getBoundingClientRect();
    this.zoom(2 ** (-event.deltaY / 400), (event.clientX - frame.left) * this.ratio, (event.clientY - frame.top) * this.ratio);
  }

  // ---- keyboard: arrows move a cursor, the space bar puts the tool down and lifts it again

  arrow(right, down, far) {
    if (!this.image) return;
    const step = far ? 10 : 1;
    const start = this.cursor || [this.width / 2, this.height / 2];
    const next = this.inside([start[0] + right * step, start[1] + down * step]);
    this.cursor = next;
    if (this.penDown) {
      this.drag(next);
      this.refresh();
    } else this.draw();
    this.events.say(`Cursor ${next.map(Math.round).join(", ")}`);
  }

  press() {
    if (!this.image) return;
    this.cursor ||= [this.width / 2, this.height / 2];
    if (this.penDown) {
      this.penDown = false;
      this.endStroke(false);
      return this.draw();
    }
    if (this.tool === "pan") return this.events.say("Choose a tool first: B brush, E eraser, M measure.");
    this.action = this.tool;
    this.penDown = ["brush", "erase", "measure"].includes(this.tool);
    this.begin(this.cursor);
    this.events.say(this.penDown ? "Tool down: arrows draw, space lifts it." : "");
    this.draw();
  }
}

// Run lengths of a mask as text, to keep unsaved work over a reload.
export function packed(mask) {
  const runs = [];
  for (let i = 0, start = 0; i <= mask.length; i++) {
    if (i === mask.length || mask[i] !== mask[start]) {
      runs.push(`${mask[start]}${(i - start).toString(36)}`);
      start = i;
    }
  }
  return runs.join(",");
}

export function unpacked(text, length) {
  const mask = new Uint8Array(length);
  let at = 0;
  for (const run of text.split(",")) {
    const size = parseInt(run.slice(1), 36);
    mask.fill(Number(run[0]), at, at + size);
    at += size;
  }
  return at === length ? mask : null;
}
