// Images as the server sends them: bytes (n, height, width, channels) in base64.

const GAP = 2;

function pixels(sheet) {
  const text = atob(sheet.data);
  const bytes = new Uint8ClampedArray(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function cell(bytes, [, height, width, channels], index) {
  const image = new ImageData(width, height);
  const first = index * height * width * channels;
  for (let i = 0; i < height * width; i++) {
    const from = first + i * channels;
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = bytes[from + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  return image;
}

// All images of a sheet in one canvas, near a square.
export function draw(canvas, sheet) {
  const [count, height, width] = sheet.shape;
  const columns = Math.ceil(Math.sqrt(count));
  const rows = Math.ceil(count / columns);
  const size = [columns * (width + GAP) - GAP, rows * (height + GAP) - GAP];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  canvas.classList.toggle("small", width < 200);
  const pen = canvas.getContext("2d");
  const bytes = pixels(sheet);
  for (let i = 0; i < count; i++) {
    const x = (i % columns) * (width + GAP);
    const y = Math.floor(i / columns) * (height + GAP);
    pen.putImageData(cell(bytes, sheet.shape, i), x, y);
  }
}

// The images of a sheet, each as a sheet of its own.
export function split(sheet) {
  const [count, ...shape] = sheet.shape;
  const text = atob(sheet.data);
  const size = text.length / count;
  return Array.from({ length: count }, (_, i) => ({
    shape: [1, ...shape],
    data: btoa(text.slice(i * size, (i + 1) * size)),
  }));
}
