// The page as a whole: which view is shown, and the API key.

import { startChat } from "./chat.js";
import { announce, byId } from "./dom.js";
import { startFleet } from "./fleet.js";
import { get, key } from "./gateway.js";
import { startRequests } from "./requests.js";

const VIEWS = ["chat", "fleet", "requests"];
const settings = await get("console/settings.json").catch((error) => {
  trouble(error);
  return new Promise(() => {}); // nothing of the page works
});
const views = { chat: startChat(settings), fleet: startFleet(), requests: startRequests() };
byId("requests-link").hidden = !settings.has_inspector;
byId("key-button").hidden = !settings.needs_key;

function trouble(error) {
  byId("trouble").textContent = `${error.message}. Load the page again later.`;
}

// --- views: #chat, #fleet, #requests, #requests/ID -------------------------------------------------------------------

let shown = null;

function show() {
  const [wanted, detail] = location.hash.slice(1).split("/");
  if (shown && !VIEWS.includes(wanted)) return; // an anchor within the page
  const name = VIEWS.includes(wanted) && (wanted !== "requests" || settings.has_inspector) ? wanted : "chat";
  if (shown !== name) views[shown]?.hide();
  shown = name;
  for (const view of VIEWS) byId(`${view}-view`).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!settings.needs_key || key.get()) views[name].show(detail);
}

window.addEventListener("hashchange", show);

// --- the key ---------------------------------------------------------------------------------------------------------

function openKeyForm(isOpen, error = "") {
  byId("key-form").hidden = !isOpen;
  byId("key-button").setAttribute("aria-expanded", String(isOpen));
  byId("key-error").textContent = error;
  if (isOpen) byId("key").focus();
}

byId("key-button").addEventListener("click", () => openKeyForm(byId("key-form").hidden));

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const before = key.get();
  key.set(byId("key").value.trim());
  byId("key").value = "";
  if (before && before !== key.get()) return location.reload(); // nothing that one key asked is sent or shown under another
  if (await begin()) {
    openKeyForm(false);
    announce("The key is valid");
    byId("prompt").focus();
  }
});

byId("forget-key").addEventListener("click", () => {
  key.forget();
  location.reload();
});

document.addEventListener("dsd-key-refused", () => {
  key.forget();
  views[shown]?.hide();
  openKeyForm(true, "The gateway does not know this key");
});

// --- begin -----------------------------------------------------------------------------------------------------------

/** Asks for the model, which needs a valid key; shows the view then. Returns whether it did. */
async function begin() {
  try {
    const { data } = await get("v1/models");
    byId("model").textContent = data[0].id;
    byId("trouble").textContent = "";
  } catch (error) {
    if (error.status !== 401) trouble(error);
    return false;
  }
  show();
  return true;
}

if (settings.needs_key && !key.get()) {
  show();
  openKeyForm(true);
} else {
  await begin();
}
