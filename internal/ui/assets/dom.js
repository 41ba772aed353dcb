// Elements are built, never parsed: everything that a step wrote becomes text.

// h makes an element. An attribute with a function value is an event listener; true adds an attribute, and false omits
// it.
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

// printable makes control characters visible, including those that change the direction of text, instead of letting
// them act.
export function printable(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/g, (c) =>
    c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : "\ufffd");
}

// renew changes old into fresh, but leaves equal parts unchanged. That preserves focus, selection, scroll position and
// the position of a screen reader. An element with listeners either has an id or is built the same way each time.
export function renew(old, fresh) {
  if (old.isEqualNode(fresh) || old.dataset?.kept) return;
  if (old.nodeType !== Node.ELEMENT_NODE || old.localName !== fresh.localName || old.id !== fresh.id) {
    old.replaceWith(fresh);
    return;
  }
  for (const name of old.getAttributeNames()) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (name === "style") old.style.cssText = value; // the page's policy refuses style as an attribute
    else if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const were = [...old.childNodes];
  const are = [...fresh.childNodes];
  are.forEach((child, i) => { i < were.length ? renew(were[i], child) : old.append(child); });
  were.slice(are.length).forEach((child) => child.remove());
}

// place positions an element on its track; both are fractions of the track's width, from the left.
export function place(element, left, right) {
  element.style.left = `${(left * 100).toFixed(3)}%`;
  element.style.width = `${(Math.max(right - left, 0) * 100).toFixed(3)}%`;
  return element;
}
