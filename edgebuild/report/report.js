// Draws the charts: unpacks plotly, looks up the page's colors, follows light, dark and paper.

const charts = [...document.querySelectorAll(".chart")].map((box) => {
  const data = box.querySelector("script").textContent;
  const canvas = document.createElement("div");
  box.append(canvas);
  return { box, canvas, data };
});
const settings = { displayModeBar: false, responsive: true, doubleClick: "reset" };
// What fits on A4 and on Letter between usual margins.
const PAPER = 660;

try {
  await load(document.getElementById("plotly").textContent);
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
} catch (error) {
  for (const { box } of charts) {
    box.style.minHeight = 0;
    box.textContent = "This browser cannot draw the chart; the tables hold its figures.";
  }
  throw error;
}

async function load(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

function draw(width) {
  const style = getComputedStyle(document.documentElement);
  const isColor = /^var\((--[\w-]+)\)$/;
  for (const { canvas, data } of charts) {
    const figure = JSON.parse(data, (_, value) => {
      const name = typeof value === "string" && value.match(isColor);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    });
    Plotly.react(canvas, figure.data, { ...figure.layout, width, autosize: !width }, settings);
  }
}

function print(isPaper) {
  document.documentElement.classList.toggle("paper", isPaper);
  draw(isPaper ? PAPER : undefined);
}
