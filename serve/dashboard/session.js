// Who looks at the page: asks for a key where the server wants one, keeps the token of POSTs, signs out.

import * as api from "./api.js";
import { byId, say } from "./dom.js";
import { state, touch, view } from "./store.js";

let onSignedIn = () => {};

export function start(signedIn) {
  onSignedIn = signedIn;
  byId("login-dialog").addEventListener("cancel", (event) => event.preventDefault());
  byId("login-dialog").querySelector("form").addEventListener("submit", signIn);
  byId("sign-out").addEventListener("click", signOut);
  view(["session"], draw);
}

/** Ask who we are; opens the login where nobody is signed in.  Returns whether data may be read. */
export async function check() {
  state.session = await api.getSession();
  touch("session");
  const allowed = state.session.scopes.includes("read");
  if (!allowed) refuse(state.session.name ? `The key ${state.session.name} may not read.` : "");
  return allowed;
}

function refuse(why) {
  state.connection = "signed-out";
  touch("connection");
  say(byId("login-error"), why);
  const dialog = byId("login-dialog");
  if (!dialog.open) dialog.showModal();
}

async function signIn(event) {
  event.preventDefault();
  const key = byId("login-key");
  try {
    state.session = await api.post("login", { key: key.value.trim() });
  } catch (error) {
    say(byId("login-error"), error.message);
    key.select();
    return;
  }
  key.value = "";
  touch("session");
  if (!state.session.scopes.includes("read")) return refuse(`The key ${state.session.name} may not read.`);
  byId("login-dialog").close();
  onSignedIn();
}

async function signOut() {
  await api.post("logout").catch(() => {});
  location.reload();
}

function draw() {
  const { auth, name, scopes } = state.session;
  say(byId("who"), auth && name ? `${name}${scopes.includes("operate") ? "" : " (reads only)"}` : "");
  byId("sign-out").hidden = !auth || !name;
}
