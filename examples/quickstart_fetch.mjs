// The digits of quickstart.py through fetch, in Node.js 20 or newer.
// Run quickstart.py first, in a folder where `forebay up` runs, then this: `node quickstart_fetch.mjs [HOST:PORT]`.

const jobs = `http://${process.argv[2] ?? "127.0.0.1:8000"}/api/v1/jobs`;

const images = [
  `0 0 5 13 9 1 0 0   0 0 13 15 10 15 5 0   0 3 15 2 0 11 8 0   0 4 12 0 0 8 8 0
   0 5 8 0 0 9 8 0    0 4 11 0 1 12 7 0     0 2 14 5 10 12 0 0  0 0 6 13 10 0 0 0`,
  `0 0 0 12 13 5 0 0  0 0 0 11 16 9 0 0     0 0 3 15 16 6 0 0   0 7 15 16 16 2 0 0
   0 0 1 16 16 3 0 0  0 0 1 16 16 6 0 0     0 0 1 16 16 6 0 0   0 0 0 11 16 10 0 0`,
].map((text) => text.trim().split(/\s+/).map((grey) => grey / 16)); // 64 grey values from 0 to 1 each

async function ask(url, options) {
  const response = await fetch(url, options);
  const body = await response.json();
  if (!response.ok) throw new Error(`${response.status} ${body.detail}`); // a problem of RFC 9457
  return body;
}

// The same key gives the same job, so a request whose answer was lost may be sent again.
const submit = (inputs, key, headers = {}) =>
  ask(jobs, {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": key, ...headers },
    body: JSON.stringify({ model: "digits@champion", inputs }),
  });

const digit = (scores) => scores.indexOf(Math.max(...scores));

// One job, waited for in the same request for up to 60 seconds.
const first = await submit(images[0], crypto.randomUUID(), { Prefer: "wait=60" });
console.log(`the first image shows a ${digit(first.result)}`);

// Several at once: each is durable when its request returns, and waited for afterwards.
const accepted = await Promise.all(images.map((image) => submit(image, crypto.randomUUID())));
for (const { id } of accepted) {
  console.log(`job ${id}: a ${digit(await ask(`${jobs}/${id}/result?wait=60`))}`);
}
