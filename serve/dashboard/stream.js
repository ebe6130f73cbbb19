// Server-sent events that survive a server: EventSource goes on from its last id by itself; where it gives up (an
// answer that is none, silence), a new one goes on from the same id.

const KINDS = ["verdict", "alarm", "operator", "status", "reset"];
const SILENCE_MS = 10_000; // a status comes every two seconds
const LONGEST_WAIT_MS = 10_000;

/** Follow /v1/stream.  onEvent(kind, record), onOpen(), onLost(), onRefused(): not a stream, maybe signed out. */
export function follow({ onEvent, onOpen, onLost, onRefused }) {
  let source = null;
  let last = "";
  let wait = 500;
  let ended = false;
  let retry = 0;
  let watch = 0;

  function heard() {
    clearTimeout(watch);
    watch = setTimeout(() => again(), SILENCE_MS);
  }

  function open() {
    retry = 0;
    source = new EventSource(last ? `v1/stream?last=${encodeURIComponent(last)}` : "v1/stream");
    heard();
    source.onopen = () => {
      wait = 500;
      heard();
      onOpen();
    };
    source.onerror = () => {
      if (ended) return;
      onLost();
      if (source.readyState === EventSource.CLOSED) {
        onRefused();
        again();
      }
    };
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => {
        heard();
        if (event.lastEventId) last = event.lastEventId;
        onEvent(kind, JSON.parse(event.data));
      });
    }
  }

  function again() {
    if (ended || retry) return;
    source?.close();
    clearTimeout(watch);
    onLost();
    retry = setTimeout(open, wait);
    wait = Math.min(2 * wait, LONGEST_WAIT_MS);
  }

  open();
  return {
    close() {
      ended = true;
      clearTimeout(retry);
      clearTimeout(watch);
      source?.close();
    },
  };
}
