'use strict';
// Keeps the page up to date: fetches the part that changes and takes over the differences, so that
// scroll, focus, selection and what is folded open stay. Without it the page is complete all the same.
// Addresses are relative, so that it works behind a proxy's path too.
(() => {
  const PERIOD = 2000, LIMIT = 5000;
  const byId = (id) => document.getElementById(id);
  const pause = byId('pause'), fresh = byId('fresh'), stale = byId('stale');
  let paused = false, timer, asking, since = fresh.textContent.replace(/^as of /, '');

  // Makes `old` like `next`, touching only what differs.
  const adopt = (old, next) => {
    if (old.nodeType !== next.nodeType || old.nodeName !== next.nodeName || old.id !== next.id) {
      old.replaceWith(next);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== next.data) old.data = next.data;
      return;
    }
    for (const { name } of [...old.attributes]) {
      // What a reader has folded open stays so; `class` of main carries staleness.
      if (!next.hasAttribute(name) && !(name === 'open' && old.nodeName === 'DETAILS')) old.removeAttribute(name);
    }
    for (const { name, value } of [...next.attributes]) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    // Rows that carry a key keep their node when others come or go before them.
    const keyOf = (node) => node.dataset?.key, now = [...next.childNodes], wanted = new Set(now.map(keyOf));
    const known = new Map();
    for (const child of [...old.childNodes]) {
      if (!wanted.has(keyOf(child))) child.remove();
      else if (keyOf(child) && !known.has(keyOf(child))) known.set(keyOf(child), child);
    }
    let at = old.firstChild;
    for (const child of now) {
      const key = keyOf(child), same = key ? known.get(key) : at;
      known.delete(key);
      if (!same) {
        old.insertBefore(child, at);
      } else {
        if (same === at) at = at.nextSibling;
        else old.insertBefore(same, at);
        adopt(same, child);
      }
    }
    while (at) {
      const rest = at.nextSibling;
      at.remove();
      at = rest;
    }
  };

  const look = async () => {
    const control = (asking = new AbortController());
    const limit = setTimeout(() => control.abort(), LIMIT);
    try {
      const answer = await fetch('?fragment', { cache: 'no-store', signal: control.signal });
      if (!answer.ok) throw new Error(answer.status);
      const next = new DOMParser().parseFromString(await answer.text(), 'text/html').getElementById('main');
      if (!next) throw new Error('not the status');
      const main = byId('main');
      // Another build has another style and script.
      if (main.dataset.build !== next.dataset.build) return location.reload();
      adopt(main, next);
      document.title = main.dataset.title;
      byId('favicon').href = main.dataset.icon;
      since = main.dataset.at + ' UTC';
      fresh.textContent = 'as of ' + since;
      stale.textContent = '';
    } catch {
      if (control === asking && !paused && !document.hidden) {
        byId('main').classList.add('stale');
        const said = 'Stale since ' + since + ': the shim does not answer. Trying again.';
        if (stale.textContent !== said) stale.textContent = said;
        document.title = 'stale · agent-shim';
      }
    } finally {
      clearTimeout(limit);
      if (control === asking) plan(PERIOD);
    }
  };
  const plan = (wait) => {
    clearTimeout(timer);
    if (!paused && !document.hidden) timer = setTimeout(look, wait);
  };

  pause.hidden = false;
  pause.addEventListener('click', () => {
    paused = !paused;
    pause.textContent = paused ? 'Resume updates' : 'Pause updates';
    fresh.textContent = (paused ? 'paused, as of ' : 'as of ') + since;
    plan(0);
  });
  document.addEventListener('visibilitychange', () => plan(0));
  plan(PERIOD);
})();
