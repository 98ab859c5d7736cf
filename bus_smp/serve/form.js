// The questions as a form for the keyboard: a digit chooses and goes on, Enter goes on.

export class Form {
  // element: the form; events: changed().
  constructor(element, events) {
    this.element = element;
    this.events = events;
    this.questions = [];
    element.addEventListener("change", () => this.update());
    element.addEventListener("input", () => this.update());
    element.addEventListener("keydown", (event) => this.key(event));
  }

  open(questions, answers) {
    this.questions = questions;
    this.element.querySelectorAll("[data-key]").forEach((one) => one.remove());
    const end = this.element.querySelector("button[type=submit]");
    for (const question of questions) this.element.insertBefore(this.build(question), end);
    this.fill(answers);
    this.update(false);
  }

  build(question) {
    const { key, kind, words, options = [], required } = question;
    const box = document.createElement(kind === "one" || kind === "many" ? "fieldset" : "div");
    box.dataset.key = key;
    box.className = "question";
    const title = document.createElement(box.tagName === "DIV" ? "label" : "legend");
    title.className = "title";
    title.textContent = required ? words : `${words} (optional)`;
    box.append(title);
    if (box.tagName === "DIV") {
      const input = document.createElement(kind === "text" ? "textarea" : "input");
      input.id = title.htmlFor = `question-${key}`;
      // the length as in questions.py
      if (kind === "text") (input.rows = 2), (input.maxLength = 2000);
      else Object.assign(input, { type: "number", min: question.from, max: question.to, step: "any", inputMode: "decimal" });
      box.append(input);
      return box;
    }
    options.forEach(([value, text], place) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: kind === "one" ? "radio" : "checkbox", name: `question-${key}`, value });
      const digit = document.createElement("kbd");
      digit.textContent = place + (question.digits_from ?? 1);
      // BI-RADS categories are their own digits
      label.append(input, ...(digit.textContent === text ? [text] : [digit, text]));
      box.append(label);
    });
    return box;
  }

  box(key) {
    return this.element.querySelector(`[data-key="${key}"]`);
  }

  fill(answers) {
    for (const { key, kind } of this.questions) {
      const value = answers[key];
      if (value === undefined) continue;
      if (kind === "text" || kind === "number") this.box(key).querySelector("input, textarea").value = value;
      else for (const input of this.box(key).querySelectorAll("input")) input.checked = [value].flat().includes(input.value);
    }
  }

  answers() {
    const found = {};
    for (const { key, kind } of this.questions) {
      const box = this.box(key);
      if (!box || box.hidden) continue;
      if (kind === "text") found[key] = box.querySelector("textarea").value.trim();
      else if (kind === "number") found[key] = box.querySelector("input").value === "" ? null : Number(box.querySelector("input").value);
      else {
        const chosen = [...box.querySelectorAll("input:checked")].map((input) => input.value);
        found[key] = kind === "one" ? chosen[0] : chosen;
      }
      if (found[key] === "" || found[key] == null) delete found[key];
    }
    return found;
  }

  update(tell = true) {
    for (const question of this.questions) {
      const given = this.answers();
      const asked = Object.entries(question.when || {}).every(([key, wanted]) => [wanted].flat().includes(given[key]));
      this.box(question.key).hidden = !asked;
    }
    if (tell) this.events.changed();
  }

  // The boxes that are asked, then the button.
  steps() {
    return [...this.element.querySelectorAll(".question:not([hidden])"), this.element.querySelector("button[type=submit]")];
  }

  enter(step, quiet = false) {
    const target = step.tagName === "BUTTON" ? step : step.querySelector("input:checked") || step.querySelector("input, textarea");
    // where the form is below the image, opening an image must not scroll away from it
    target.focus({ preventScroll: quiet });
    if (!quiet) step.scrollIntoView({ block: "nearest" });
    if (target.select && target.type === "number") target.select();
  }

  start(quiet = false) {
    const given = this.answers();
    const open = this.steps().find((step) => step.dataset.key && given[step.dataset.key] === undefined);
    this.enter(open || this.steps()[0], quiet);
  }

  next(box) {
    const steps = this.steps();
    this.enter(steps[Math.min(steps.length - 1, steps.indexOf(box) + 1)]);
  }

  // The first required question without an answer, or null.
  missing() {
    const given = this.answers();
    return this.questions.find((one) => one.required && !this.box(one.key).hidden && given[one.key] === undefined) || null;
  }

  choose(box, digit) {
    const question = this.questions.find((one) => one.key === box.dataset.key);
    const input = box.querySelectorAll("input")[digit - (question.digits_from ?? 1)];
    if (!input) return;
    input.checked = question.kind === "one" || !input.checked;
    this.update();
    if (question.kind === "one") this.next(box);
    else input.focus();
  }

  key(event) {
    const box = event.target.closest(".question");
    if (!box || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.next(box);
    } else if (/^\d$/.test(event.key) && box.tagName === "FIELDSET") {
      event.preventDefault();
      this.choose(box, Number(event.key));
    }
  }
}
