// The parts that figures share: elements, groups of buttons, the tooltip.

const element = (name, attributes = {}, text = "") => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
};

// Buttons of which one is pressed. `pick` gets its index.
const choice = (label, names, pick) => {
  const group = element("div", { class: "views", role: "group", "aria-label": label });
  names.forEach((name, index) => {
    group.append(element("button", { type: "button", "aria-pressed": String(index === 0) }, name));
  });
  choosing([...group.children], pick);
  return group;
};
const choosing = (buttons, pick) => {
  buttons.forEach((button, index) => button.addEventListener("click", () => {
    buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    pick(index);
  }));
};

const tool = (text, label, act) => {
  const button = element("button", { type: "button", class: "tool", "aria-label": label, title: label }, text);
  button.addEventListener("click", () => act(button));
  return button;
};

const tip = document.getElementById("tip");
const hideTip = () => { tip.hidden = true; };
// Beside a place in the window, and never outside of it.
const showTip = (x, y, text) => {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  const top = y + 16 + box.height > innerHeight ? y - 12 - box.height : y + 16;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, top) + "px";
};
// `move` and `leave` for a pointer over `field`; a finger is a pointer too.
const follow = (field, move, leave) => {
  field.addEventListener("pointermove", move);
  field.addEventListener("pointerdown", move);
  field.addEventListener("pointerleave", leave);
};
