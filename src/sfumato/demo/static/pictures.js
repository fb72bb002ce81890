// The image that the page works on: an example, or one of the user's own.

import { upload } from "./api.js";
import { button, element } from "./controls.js";

// Lets a place take image files that are dropped on it.
export function droppable(place, taken, failed) {
  const over = (yes) => (event) => {
    event.preventDefault();
    place.classList.toggle("dropping", yes);
  };
  place.addEventListener("dragover", over(true));
  place.addEventListener("dragleave", over(false));
  place.addEventListener("drop", (event) => {
    over(false)(event);
    const [file] = event.dataTransfer.files;
    if (file) send(file, taken, failed);
  });
}

async function send(file, taken, failed) {
  try {
    taken(await upload(file), file.name);
  } catch (error) {
    failed(error);
  }
}

// A button that opens the file dialog.
export function opener(text, taken, failed) {
  const input = element("input", { type: "file", accept: "image/png,image/jpeg", hidden: true });
  input.setAttribute("aria-label", text);
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = "";
    if (file) send(file, taken, failed);
  });
  return element("span", {}, button(text, () => input.click()), input);
}
