// The explorer in a notebook, as anywidget takes it: a frame that holds the bundle and reaches nothing, and messages to the kernel.

/** Whether the notebook is dark: as JupyterLab, VS Code and Colab say it, or else by its background. */
function themeOf() {
  const { body, documentElement } = document;
  const said = body.dataset.jpThemeLight ?? body.dataset.vscodeThemeKind ?? documentElement.getAttribute("theme");
  if (said) return said === "false" || said.includes("dark") ? "dark" : "light";
  const channels = getComputedStyle(body).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [];
  if (channels.length < 3 || channels[3] === 0) return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  return channels[0] + channels[1] + channels[2] < 384 ? "dark" : "light";
}

function render({ model, el }) {
  const frame = document.createElement("iframe");
  const tell = (message) => frame.contentWindow?.postMessage(message, "*"); // the frame has no origin that could be named
  const isCard = model.get("card");
  const view = `${Date.now()}-${Math.random()}`; // a widget may be shown twice, and each frame counts its questions from one
  frame.title = "actstore explorer";
  frame.setAttribute("sandbox", "allow-scripts allow-forms allow-popups");
  frame.style.cssText = "width: 100%; border: 1px solid #8884; border-radius: 6px; display: block";
  frame.style.height = `${isCard ? Math.min(420, model.get("height")) : model.get("height")}px`;

  const hear = ({ source, data }) => {
    if (source !== frame.contentWindow || !data || typeof data !== "object") return;
    if (data.ready) tell({ theme: themeOf(), route: model.get("route") }); // which the kernel may have changed meanwhile
    if (data.address) model.send({ view, id: data.id, address: String(data.address) });
    if (data.route && data.route !== model.get("route")) {
      model.set("route", String(data.route));
      model.save_changes();
    }
    if (isCard && data.height > 0) frame.style.height = `${Math.min(Math.ceil(data.height) + 2, model.get("height"))}px`;
  };
  const answered = (message) => message.view === view && tell(message);
  const routed = () => tell({ route: model.get("route") });
  const themed = new MutationObserver(() => tell({ theme: themeOf() }));
  addEventListener("message", hear);
  model.on("msg:custom", answered);
  model.on("change:route", routed);
  for (const node of [document.body, document.documentElement]) themed.observe(node, { attributes: true });
  frame.srcdoc = model.get("page");
  el.append(frame);
  return () => {
    removeEventListener("message", hear);
    model.off("msg:custom", answered);
    model.off("change:route", routed);
    themed.disconnect();
  };
}

export default { render };
