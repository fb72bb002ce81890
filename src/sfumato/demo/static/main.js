// The page: three tabs over one interface, and the theme.

import { get } from "./api.js";
import { Corrupt } from "./corrupt.js";
import { Restore } from "./restore.js";
import { Sample } from "./sample.js";

const KINDS = { corrupt: Corrupt, sample: Sample, restore: Restore };
const tabs = [...document.querySelectorAll("[role=tab]")];
const views = {};
let open;

function sayer(page) {
  const place = page.querySelector(".error");
  return (error) => {
    place.hidden = !error;
    place.classList.toggle("note", Boolean(error?.note));
    place.textContent = error ? error.message : "";
  };
}

function choose(name, focus = false) {
  if (!(name in KINDS)) name = "corrupt";
  if (open === name) return;
  if (open) views[open].close();
  open = name;
  for (const tab of tabs) {
    const mine = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", mine);
    tab.tabIndex = mine ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !mine;
    if (mine && focus) tab.focus();
  }
  history.replaceState(null, "", `#${name}`);
  views[name].open();
}

function theme() {
  const key = "theme";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  if (localStorage.getItem(key)) root.dataset.theme = localStorage.getItem(key);
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme ?? (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    localStorage.setItem(key, root.dataset.theme);
  });
}

async function start() {
  theme();
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
  const offered = await get("/api/options");
  for (const [name, Kind] of Object.entries(KINDS)) {
    const page = document.getElementById(name);
    views[name] = new Kind(page, offered, sayer(page));
  }
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => choose(tab.id.slice(4)));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose(tabs[(i + step + tabs.length) % tabs.length].id.slice(4), true);
    });
  });
  addEventListener("hashchange", () => choose(location.hash.slice(1)));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") views[open].close();
  });
  choose(location.hash.slice(1) || "corrupt");
}

start().catch((error) => sayer(document.getElementById("corrupt"))(error));
