// C_t and Sigma_t as the library spells them, set with their letters.

import { element } from "./controls.js";

const WORDS = { Lambda: "\u039b", Sigma: "\u03a3", sqrt: "\u221a", abar: "\u1fb1", "-": "\u2212" };
const TOKEN = /min\([^()]*\)|[a-zA-Z]+|\d[\d.]*(?:e[+-]?\d+)?|[_^]|\s+|./g;

function set(text) {
  const nodes = [];
  let tag = null;
  for (const [token] of text.replace(/(\d) (?=\d)/g, "$1\u2009\u00b7\u2009").matchAll(TOKEN)) {
    if (token === "_" || token === "^") {
      tag = token === "_" ? "sub" : "sup";
      continue;
    }
    const shown = WORDS[token] ?? token;
    const upright = /^[\d.]|^exp$|[()/\u2212+]/.test(shown) ? "up" : "";
    nodes.push(tag ? element(tag, {}, shown) : element("span", { className: upright }, shown));
    tag = null;
  }
  return nodes;
}

export function typeset({ signal, cov }) {
  const gap = element("span", { className: "gap" });
  return [...set("C_t = "), ...set(signal), gap, ...set("Sigma_t = "), ...set(cov)];
}
