// Colours, the menu of narrow windows, search, and which heading is read. Works from a folder too: nothing is fetched, scripts are loaded.
"use strict";

const byId = (id) => document.getElementById(id);

// Colours
{
  const select = byId("theme");
  select.value = document.documentElement.dataset.theme || "system";
  select.addEventListener("change", () => {
    document.documentElement.dataset.theme = select.value;
    try { localStorage.setItem("actstore-docs-theme", select.value); } catch { /* for this page alone, then */ }
  });
}

// Pages, where there is no room beside the text
{
  const [menu, pages] = [byId("menu"), byId("pages")];
  menu.addEventListener("click", () => {
    const isOpen = pages.classList.toggle("open");
    menu.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) window.scrollTo(0, 0);
  });
}

// What scrolls sideways is reached by the keyboard; what does not is no stop on its way.
for (const box of document.querySelectorAll("main pre, main .scroll")) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}

// The heading that is read
{
  const links = new Map([...document.querySelectorAll(".headings a")].map((link) => [decodeURIComponent(link.hash.slice(1)), link]));
  const targets = [...links.keys()].map(byId).filter(Boolean);
  let here;
  const follow = () => {
    const edge = byId("content").offsetTop + 60;
    const passed = targets.filter((target) => target.getBoundingClientRect().top < edge);
    const link = passed.length ? links.get(passed.at(-1).id) : undefined;
    if (link === here) return;
    here?.classList.remove("here");
    link?.classList.add("here");
    here = link;
    const list = byId("pages");
    if (link && list.scrollHeight > list.clientHeight) list.scrollTop = link.offsetTop - list.clientHeight / 2;
  };
  let waits = false;
  addEventListener("scroll", () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => { waits = false; follow(); });
  }, { passive: true });
  follow();
}

// Search: lunr, and the index of all sections, from two scripts that are loaded when somebody asks.
{
  const [input, results] = [byId("query"), byId("results")];
  const base = input.dataset.base.replace(/\/?$/, "/");
  const MAX_RESULTS = 12;
  const loadScript = (name) => new Promise((resolve, reject) => {
    const script = document.createElement("script");
    Object.assign(script, { src: base + name, onload: resolve, onerror: () => reject(new Error(`${name} is not there`)) });
    document.head.append(script);
  });
  let index;
  const load = () => (index ??= Promise.all([loadScript("search/lunr.js"), loadScript("search/search_index.js")]).then(() => {
    const { config, docs } = window.searchIndex;
    lunr.tokenizer.separator = new RegExp(config.separator);
    const sections = new Map(docs.map((section) => [section.location, section]));
    const words = lunr(function build() {
      this.ref("location");
      this.field("title", { boost: 8 });
      this.field("text");
      docs.forEach((section) => this.add(section));
    });
    return { words, sections };
  }));

  const find = ({ words, sections }, text) => {
    const terms = lunr.tokenizer(text).map(String).filter(Boolean);
    const stems = (term) => lunr.stemmer(new lunr.Token(term)).toString();
    const matches = words.query((query) => {
      for (const term of terms) {
        query.term(stems(term), { boost: 10 });
        query.term(term, { wildcard: lunr.Query.wildcard.TRAILING, boost: 2 });
      }
    });
    // Sections that have more of the words come first.
    const covered = (match) => terms.filter((term) => Object.keys(match.matchData.metadata).some((found) => found.startsWith(stems(term)))).length;
    return matches.map((match) => ({ section: sections.get(match.ref), covered: covered(match), score: match.score }))
      .sort((a, b) => b.covered - a.covered || b.score - a.score).slice(0, MAX_RESULTS).map((match) => match.section);
  };

  const excerpt = (text, terms) => {
    const at = Math.max(0, Math.min(...terms.map((term) => text.toLowerCase().indexOf(term)).filter((place) => place >= 0), text.length) - 60);
    const piece = text.slice(at === text.length - 60 ? 0 : at).slice(0, 180);
    const pattern = new RegExp(`(${terms.map((term) => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
    return piece.split(pattern).map((part, i) => {
      if (i % 2 === 0) return document.createTextNode(part);
      const mark = document.createElement("mark");
      mark.textContent = part;
      return mark;
    });
  };

  const plain = (html) => new DOMParser().parseFromString(html, "text/html").body.textContent;
  const line = (sections, section, terms) => {
    const link = document.createElement("a");
    link.href = base + section.location;
    const title = document.createElement("b");
    const page = sections.get(section.location.split("#")[0]);
    title.textContent = plain(section.title);
    const where = page && page !== section && plain(page.title) !== title.textContent ? ` · ${plain(page.title)}` : "";
    const about = document.createElement("small");
    about.append(...excerpt(plain(section.text), terms));
    link.append(title, where, about);
    return link;
  };

  const say = (text) => {
    const note = document.createElement("p");
    note.setAttribute("role", "status");
    note.textContent = text;
    results.replaceChildren(note);
  };

  const show = async () => {
    const text = input.value.trim();
    results.hidden = text.length < 2;
    if (results.hidden) return;
    try {
      const loaded = await load();
      if (text !== input.value.trim()) return;
      const sections = find(loaded, text);
      const terms = text.toLowerCase().split(/\s+/);
      if (sections.length) results.replaceChildren(...sections.map((section) => line(loaded.sections, section, terms)));
      else say(`Nothing about “${text}”.`);
    } catch (error) {
      say(`Search does not work here: ${error.message}.`);
    }
  };

  input.addEventListener("focus", () => { load().catch(() => {}); });
  input.addEventListener("input", show);
  input.form.addEventListener("submit", (event) => {
    event.preventDefault();
    results.querySelector("a")?.click();
  });
  document.addEventListener("keydown", (event) => {
    const links = [input, ...results.querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      input.focus();
    } else if (event.key === "Escape") {
      results.hidden = true;
    } else if (!results.hidden && at >= 0 && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      links[Math.max(0, Math.min(links.length - 1, at + (event.key === "ArrowDown" ? 1 : -1)))].focus();
    }
  });
  document.addEventListener("click", (event) => { if (!input.form.contains(event.target) || event.target.closest(".results a")) results.hidden = true; });
}
