// Elements are built, never parsed: whatever a step wrote becomes text.

// h makes an element. Attributes that are functions listen; true and false add and leave out.
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(element, child);
    else if (child instanceof Node) element.append(child);
    else if (child !== null && child !== undefined && child !== false) element.append(printable(child));
  }
}

// printable shows control characters, and those that turn the direction of text, instead of obeying them.
export function printable(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/g, (c) =>
    c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : "\ufffd");
}

// renew makes old what fresh is and leaves alone what is the same: focus, selection and scrolling, and what a screen reader
// has read. Whatever listens has an id, or is built alike each time.
export function renew(old, fresh) {
  if (old.isEqualNode(fresh) || old.dataset?.kept) return;
  if (old.nodeType !== Node.ELEMENT_NODE || old.localName !== fresh.localName || old.id !== fresh.id) {
    old.replaceWith(fresh);
    return;
  }
  for (const name of old.getAttributeNames()) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (name === "style") old.style.cssText = value; // as an attribute the policy of the page would refuse it
    else if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const were = [...old.childNodes];
  const are = [...fresh.childNodes];
  are.forEach((child, i) => { i < were.length ? renew(were[i], child) : old.append(child); });
  were.slice(are.length).forEach((child) => child.remove());
}

// place puts an element from left to right on the track it is in, in parts of one.
export function place(element, left, right) {
  element.style.left = `${(left * 100).toFixed(3)}%`;
  element.style.width = `${(Math.max(right - left, 0) * 100).toFixed(3)}%`;
  return element;
}
