// Builds the bundle: `node build.mjs FOLDER NODE_MODULES`. One classic script, because pages that are opened from a folder may run no modules.
import { copyFile, mkdir } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const [target, modules] = process.argv.slice(2).map((path) => resolve(path));
const { build } = await import(pathToFileURL(join(modules, "esbuild", "lib", "main.js")).href);
await mkdir(target, { recursive: true });
const common = { bundle: true, minify: true, charset: "utf8", legalComments: "none", nodePaths: [modules], logLevel: "warning" };
await build({
  ...common, entryPoints: [join(here, "main.jsx")], outfile: join(target, "explorer.js"), format: "iife", target: ["chrome100", "firefox113", "safari16.4"],
  banner: { js: "/*! actstore explorer, Apache-2.0. Contains Preact, © 2015-present Jason Miller, MIT licence. */" },
  jsx: "automatic", jsxImportSource: "preact", absWorkingDir: here,
});
await build({ ...common, entryPoints: [join(here, "style.css")], outfile: join(target, "explorer.css"), target: ["chrome100", "firefox113", "safari16.4"], absWorkingDir: here });
await build({ ...common, entryPoints: [join(here, "widget.js")], outfile: join(target, "widget.js"), format: "esm", target: ["chrome100", "firefox113", "safari16.4"], absWorkingDir: here });
for (const file of ["index.html", "icon.svg"]) await copyFile(join(here, file), join(target, file));
