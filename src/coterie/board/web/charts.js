"use strict";
// Curves over steps, rollouts or seconds, drawn with uPlot; each has its content as text for screen readers.

const WHOLE = [1, 2, 5].flatMap((digit) => [1, 10, 100, 1e3, 1e4, 1e5].map((size) => digit * size)).sort((a, b) => a - b);
const PALETTE = ["line-1", "line-2", "line-3", "line-4", "line-5", "line-6"];

/** One shared x for several series of [x, y]: uPlot's columns. */
function columns(series) {
  const places = [...new Set(series.flatMap((item) => item.x))].filter((x) => x !== null).sort((a, b) => a - b);
  const index = new Map(places.map((x, place) => [x, place]));
  const ys = series.map((item) => {
    const column = new Array(places.length).fill(null);
    item.x.forEach((x, place) => index.has(x) && (column[index.get(x)] = item.y[place]));
    return column;
  });
  return [places, ...ys];
}

function describe(series) {
  return series
    .map(({ name, y }) => {
      const values = y.filter((value) => value !== null);
      if (!values.length) return `${name}: no values`;
      const low = values.reduce((a, b) => Math.min(a, b));
      const high = values.reduce((a, b) => Math.max(a, b));
      return `${name}: ${number(values[0])} at first, ${number(values[values.length - 1])} at last, between ${number(low)} and ${number(high)}`;
    })
    .join("; ");
}

/** Shade the steps that a finding points to. */
function bands(steps) {
  return {
    hooks: {
      drawClear: (plot) => {
        for (const [first, last] of steps) {
          const left = plot.valToPos(first, "x", true);
          const right = plot.valToPos(last, "x", true);
          plot.ctx.save();
          plot.ctx.fillStyle = color("mark");
          plot.ctx.fillRect(left - 2, plot.bbox.top, Math.max(4, right - left + 4), plot.bbox.height);
          plot.ctx.restore();
        }
      },
    },
  };
}

/** A chart of series {name, x, y, dots?, dash?, color?}; drawn when it comes into view. `marks` are [first, last] steps. */
function Chart({ series, height = 130, label, xLabel = "step", marks = [], legend = false, onPick }) {
  const box = useRef(null);
  const drawn = useRef(null);
  const [visible, setVisible] = useState(false);
  const now = shade();
  useEffect(() => {
    const observer = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        setVisible(true);
        observer.disconnect();
      }
    }, { rootMargin: "300px" });
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    if (!visible) return undefined;
    const axis = { stroke: color("quiet"), grid: { stroke: color("grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const options = {
      width: Math.max(160, box.current.clientWidth),
      height,
      legend: { show: legend, live: true },
      cursor: { points: { size: 6 }, drag: { x: true, y: false } },
      // Zeros alone are drawn on 0 to 1, where uPlot would take 0 to 100.
      scales: { x: { time: false }, y: { range: (plot, low, high) => (low === null || (low === 0 && high === 0) ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true)) } },
      axes: [
        { ...axis, space: 46, size: 26, incrs: xLabel === "step" ? WHOLE : undefined, values: (plot, values) => values.map((value) => number(value)) },
        { ...axis, size: 52, space: 28, values: (plot, values) => values.map((value) => number(value)) },
      ],
      series: [
        { label: xLabel, value: (plot, value) => number(value) },
        ...series.map((item, place) => ({
          label: item.name,
          stroke: color(item.color || PALETTE[place % PALETTE.length]),
          width: 1.6,
          dash: item.dash,
          spanGaps: true,
          points: { show: Boolean(item.dots) || item.x.length < 3, size: 6, fill: color(item.color || PALETTE[place % PALETTE.length]) },
          value: (plot, value) => number(value),
        })),
      ],
      plugins: [bands(marks)],
    };
    const plot = new uPlot(options, columns(series), box.current);
    drawn.current = { plot, series };
    const resize = new ResizeObserver(() => plot.setSize({ width: Math.max(160, box.current.clientWidth), height }));
    resize.observe(box.current);
    const pick = () => onPick && plot.cursor.idx !== null && onPick(plot.data[0][plot.cursor.idx]);
    box.current.addEventListener("dblclick", pick);
    return () => {
      resize.disconnect();
      box.current && box.current.removeEventListener("dblclick", pick);
      plot.destroy();
      drawn.current = null;
    };
  }, [visible, now, height, xLabel, JSON.stringify(marks), series.map((item) => item.name).join("\n")]);
  useEffect(() => {
    if (!drawn.current || drawn.current.series === series) return;
    const { plot } = drawn.current;
    const [places, scale] = [plot.data[0], plot.scales.x];
    const zoomed = scale.min > places[0] || scale.max < places[places.length - 1];
    drawn.current.series = series;
    plot.setData(columns(series), !zoomed); // a step that comes in leaves the view as it was chosen
  }, [series]);
  const text = `${label}. ${describe(series)}`;
  return html`<div class="chart" role="img" aria-label=${text} style=${{ minHeight: `${height}px` }} ref=${box}></div>`;
}
