// ONNX Runtime Web's end of onnxruntime_web.py: it runs models under node or in a browser, and reads the clock there.
//
// node onnxruntime_web.mjs PACKAGE [BROWSER FLAG...]: PACKAGE is the folder of onnxruntime-web. Requests come on standard
// input, answers go to file descriptor 3. With a BROWSER, Chromium or one like it, node serves it this file as a page,
// and passes messages on: models run in the page. A message is the length of its header (four bytes, the lowest first), the
// header (JSON), and blobs whose lengths are the header's `sizes`. A tensor is {name, type, dims} and a blob, or one of
// strings with its `texts` and an empty blob.

const inNode = typeof process !== 'undefined';

const ARRAYS = {
  bool: Uint8Array, float16: Uint16Array, float32: Float32Array, float64: Float64Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
};

// -- messages ---------------------------------------------------------------------------------------------------------

/** The parts of a message, to be written one after the other. */
function packed(header, blobs = []) {
  const text = new TextEncoder().encode(JSON.stringify({ ...header, sizes: blobs.map((blob) => blob.byteLength) }));
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, text.length, true);
  return [new Uint8Array(length.buffer), text, ...blobs];
}

/** A function that reads so many bytes of a stream; `null` when it ends before. */
function reader(stream) {
  const chunks = stream[Symbol.asyncIterator]();
  let parts = [];
  let held = 0;
  return async (size) => {
    while (held < size) {
      const { value, done } = await chunks.next();
      if (done) return null;
      parts.push(value);
      held += value.length;
    }
    const whole = parts.length === 1 ? parts[0] : joined(parts, held);
    parts = [whole.subarray(size)];
    held -= size;
    return whole.subarray(0, size);
  };
}

function joined(parts, size) {
  const whole = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Read a message: its header and its blobs, each an ArrayBuffer of its own. `null` at the end of the stream. */
async function message(read) {
  const length = await read(4);
  const text = length && (await read(new DataView(length.buffer, length.byteOffset).getUint32(0, true)));
  if (!text) return null;
  const header = JSON.parse(new TextDecoder().decode(text));
  const blobs = [];
  for (const size of header.sizes) {
    const bytes = await read(size);
    if (!bytes) return null;
    blobs.push(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + size));
  }
  return [header, blobs];
}

// -- models -----------------------------------------------------------------------------------------------------------

/** What a request fails with, by the name of the exception in Python. */
class Failure extends Error {
  constructor(kind, error) {
    super(String(error?.message ?? error));
    this.kind = kind;
    // After such an error WebAssembly is not to be used any more: the process ends, and says why.
    this.fatal = error instanceof WebAssembly.RuntimeError || /^Aborted\(/.test(this.message);
  }
}

async function telling(kind, work) {
  try {
    return await work();
  } catch (error) {
    throw new Failure(kind, error);
  }
}

/** Return what is printed while `work` runs: WebAssembly prints to the console, or under node to standard output. */
async function printed(work) {
  const lines = [];
  sink = (text) => lines.push(text);
  try {
    await work();
  } finally {
    sink = null;
  }
  return lines.join('');
}

let sink = null;
const { log } = console;
console.log = (...words) => (sink ? sink(`${words.join(' ')}\n`) : log(...words)); // before WebAssembly binds it

/** Models by key, and the sessions of those that are loaded: a method for each request. */
class Server {
  /** `load` imports the package for a provider. */
  constructor(load) {
    this.load = load;
    this.models = new Map();
    this.sessions = new Map();
  }

  async hello({ threads, provider }) {
    this.provider = provider;
    let device = '';
    if (provider === 'webgpu') {
      const adapter = await globalThis.navigator?.gpu?.requestAdapter();
      if (!adapter) throw new Failure('CannotLoad', 'the browser has no WebGPU device here');
      const { vendor, architecture, device: name, description, isFallbackAdapter } = adapter.info;
      device = [vendor, architecture, name, description].filter(Boolean).join(' ');
      if (isFallbackAdapter ?? adapter.isFallbackAdapter) // how fast it is says nothing about devices
        throw new Failure('CannotLoad', `the browser has no WebGPU device here, only the processor (${device})`);
    }
    try {
      this.ort = await this.load(provider);
    } catch (error) {
      throw new Failure('CannotLoad', `onnxruntime-web cannot be imported: ${error?.message ?? error}`);
    }
    if (threads) this.ort.env.wasm.numThreads = threads;
    return [{ device }];
  }

  add({ key, files, feeds, optimize }, blobs) {
    const tensors = feeds.map((feed, place) => [feed, blobs[1 + files.length + place]]);
    this.models.set(key, {
      data: new Uint8Array(blobs[0]),
      feeds: () => Object.fromEntries(tensors.map(([feed, blob]) => [feed.name, this.tensor(feed, blob)])),
      options: {
        executionProviders: [this.provider],
        graphOptimizationLevel: optimize ? 'all' : 'disabled',
        externalData: files.map((file, place) => ({ path: file, data: new Uint8Array(blobs[1 + place]) })),
      },
    });
  }

  tensor({ type, dims, texts }, blob) {
    return new this.ort.Tensor(type, type === 'string' ? texts : new ARRAYS[type](blob), dims);
  }

  async drop({ key }) {
    await this.free(key);
    this.models.delete(key);
  }

  async open({ keys }) {
    await this.shut();
    for (const key of keys) this.sessions.set(key, await this.loaded(key));
  }

  async shut() {
    await this.free(...this.sessions.keys());
  }

  async run({ order }) {
    const seconds = [];
    for (const key of order) seconds.push(await this.timed(this.sessions.get(key)));
    return [{ seconds }];
  }

  async timed({ session, feeds }) {
    const start = performance.now();
    await telling('CannotRun', () => session.run(feeds));
    return (performance.now() - start) / 1000;
  }

  /** The seconds of the runs, the first of which warms up, and ONNX Runtime's profile, which it prints. */
  async profile({ key, runs }) {
    const loaded = await this.loaded(key, { enableProfiling: true });
    try {
      const seconds = [];
      for (let run = 0; run <= runs; run++) seconds.push(await this.timed(loaded));
      const text = await printed(() => loaded.session.endProfiling());
      return [{ seconds }, [new TextEncoder().encode(text)]];
    } finally {
      await loaded.session.release();
    }
  }

  async outputs({ key }) {
    const { session, feeds } = await this.loaded(key);
    try {
      const results = Object.entries(await telling('CannotRun', () => session.run(feeds)));
      const other = results.find(([, { type }]) => !(type in ARRAYS) && type !== 'string');
      if (other) throw new Failure('CannotRun', `output '${other[0]}' is ${other[1].type}, which is not read here`);
      const outputs = results.map(([name, { type, dims, data }]) =>
        type === 'string' ? { name, type, dims, texts: data } : { name, type, dims });
      const blobs = results.map(([, { type, data }]) =>
        type === 'string' ? new Uint8Array() : new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice());
      return [{ outputs }, blobs];
    } finally {
      await session.release();
    }
  }

  async loaded(key, more = {}) {
    const { data, options, feeds } = this.models.get(key);
    const given = await telling('CannotRun', async () => feeds());
    const session = await telling('CannotLoad', () => this.ort.InferenceSession.create(data, { ...options, ...more }));
    return { session, feeds: given };
  }

  async free(...keys) {
    for (const key of keys) {
      const held = this.sessions.get(key);
      this.sessions.delete(key);
      if (held) await held.session.release();
    }
  }

  /** The answer to a request, as a message. */
  async answer([header, blobs]) {
    try {
      const [told, more] = (await this[header.request](header, blobs)) ?? [{}];
      return packed({ kind: 'done', ...told }, more);
    } catch (error) {
      if (error.fatal) throw error;
      return packed({ kind: error.kind ?? 'bug', text: error.kind ? error.message : String(error.stack) });
    }
  }
}

// -- in the page ------------------------------------------------------------------------------------------------------

async function page() {
  if (!globalThis.crossOriginIsolated) throw new Error('the browser does not isolate the page: no threads, a coarse clock');
  const server = new Server((provider) => import(`./package/ort.${provider}.min.mjs`));
  for (let answer = []; ; ) {
    const response = await fetch('talk', { method: 'POST', body: new Blob(answer) });
    const bytes = new Uint8Array(await response.arrayBuffer());
    const whole = (async function* () { yield bytes; })();
    answer = bytes.length ? await server.answer(await message(reader(whole))) : [];
  }
}

// -- in node ----------------------------------------------------------------------------------------------------------

async function node(folder, browser, ...flags) {
  const { default: fs } = await import('node:fs');
  const { default: path } = await import('node:path');
  const { pathToFileURL } = await import('node:url');

  function send(parts) {
    for (const part of parts)
      for (let at = 0; at < part.byteLength; ) at += writeSync(3, part, at, part.byteLength - at);
  }

  function dies(error) {
    writeSync(2, `${String(error?.message ?? error).replace(/\s+/g, ' ')}\n`);
    process.exit(70);
  }

  const { writeSync } = fs;
  fs.writeSync = (fd, data, ...rest) => (fd === 1 && sink ? sink(String(data)) : writeSync(fd, data, ...rest));
  process.on('SIGINT', () => {}); // Ctrl-C reaches the whole process group: the parent decides, and closes the pipe
  process.on('uncaughtException', dies);
  process.on('unhandledRejection', dies);
  const read = reader(process.stdin);
  const served = browser ? await inBrowser(path.join(folder, 'dist'), [browser, ...flags], send, dies) : null;
  const server = new Server(() => import(pathToFileURL(path.join(folder, 'dist', 'ort.node.min.mjs'))));
  for (let request; (request = await message(read)); ) {
    if (served) await served.pass(packed(...request));
    else send(await server.answer(request));
  }
  await served?.close();
  process.exit(0);
}

const PAGE = `<!doctype html><title>dilrewrite</title><script>
const tell = (error) => fetch('dead', { method: 'POST', body: String(error?.message ?? error) });
onerror = (text, file, line, column, error) => tell(error ?? text);
onunhandledrejection = (event) => tell(event.reason);
</script><script type="module" src="runtime.mjs"></script>`;

const START_S = 60; // until the page has to be there
const POLL_S = 20; // how long the page waits for a request before it asks again: browsers give up on silence
const LEAVE_S = 3; // for a browser that is asked to leave

/** Start a browser on a page of a server here; `pass` gives a request to the page, whose answer is sent. */
async function inBrowser(dist, [browser, ...more], send, dies) {
  const { default: fs } = await import('node:fs');
  const { default: path } = await import('node:path');
  const { default: http } = await import('node:http');
  const { spawn } = await import('node:child_process');
  const { randomBytes } = await import('node:crypto');

  let waiting = null; // the page's request for more
  let wake = () => {};
  const secret = randomBytes(16).toString('hex'); // nobody else on this machine gets the page, or answers for it
  const isolated = {
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
    'Cache-Control': 'no-store',
  };

  async function body(request) {
    const parts = [];
    for await (const part of request) parts.push(part);
    return parts;
  }

  async function serve(request, response) {
    const asked = request.url.startsWith(`/${secret}/`) ? request.url.slice(secret.length + 2) : null;
    const file = asked === 'runtime.mjs' ? process.argv[1] : /^package\/[\w.-]+$/.test(asked) && path.join(dist, asked.slice(8));
    const type = { '.mjs': 'text/javascript', '.wasm': 'application/wasm' };
    if (asked === 'talk') {
      send(await body(request));
      clearTimeout(late);
      response.writeHead(200, isolated);
      waiting = response;
      setTimeout(() => waiting === response && taken()?.end(), POLL_S * 1000);
      wake();
    } else if (asked === 'dead') {
      dies(Buffer.concat(await body(request)));
    } else if (asked === '') {
      response.writeHead(200, { ...isolated, 'Content-Type': 'text/html' }).end(PAGE);
    } else if (file && fs.existsSync(file)) {
      response.writeHead(200, { ...isolated, 'Content-Type': type[path.extname(file)] ?? 'text/plain' });
      fs.createReadStream(file).pipe(response);
    } else {
      response.writeHead(404, isolated).end();
    }
  }

  function taken() {
    const response = waiting;
    waiting = null;
    return response;
  }

  const server = http.createServer((request, response) => serve(request, response).catch(dies));
  server.requestTimeout = 0;
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const late = setTimeout(() => dies(`the page did not start within ${START_S} s`), START_S * 1000);

  const flags = [
    '--headless=new', '--remote-debugging-pipe', `--user-data-dir=${path.resolve('browser')}`, '--no-first-run',
    '--no-default-browser-check', '--disable-background-networking', '--disable-component-update', '--disable-sync',
    '--disable-extensions', '--disable-breakpad', '--disable-dev-shm-usage', '--disable-background-timer-throttling',
    '--disable-renderer-backgrounding', '--disable-backgrounding-occluded-windows', '--password-store=basic',
    ...more,
    ...(process.getuid?.() === 0 ? ['--no-sandbox'] : []), // it does not run as root with one
  ];
  const child = spawn(browser, [...flags, 'about:blank'], {
    stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe'],
    // Its files lie in this folder: `.`, for the place of a socket must not be long.
    env: { ...process.env, HOME: process.cwd(), TMPDIR: '.', TMP: '.', TEMP: '.' },
  });
  let said = '';
  child.stderr.on('data', (text) => (said = (said + text).slice(-4000)));
  child.on('error', (error) => dies(`${browser} cannot be started: ${error.message}`));
  child.on('exit', (code, signal) => {
    const lines = said.split('\n').filter((line) => line.trim());
    const why = lines.find((line) => line.includes(':FATAL:')) ?? lines.pop() ?? '';
    dies(`${browser} ended with ${signal ?? `exit code ${code}`}: ${why.replace(/^\[[^\]]*\] /, '')}`);
  });
  process.on('exit', () => child.kill('SIGKILL')); // the parent kills the rest of the group
  process.on('SIGTERM', () => dies('it was stopped'));

  // Chromium's DevTools protocol: each message ends with a zero.
  let heard = '';
  child.stdio[4].on('data', (text) => {
    const parts = (heard + text).split('\0');
    heard = parts.pop();
    for (const part of parts) if (JSON.parse(part).method === 'Target.targetCrashed') dies('the page crashed (perhaps out of memory)');
  });
  child.stdio.slice(3).forEach((pipe) => pipe.on('error', () => {})); // a browser that is gone is told of above
  const command = (id, method, params = {}) => child.stdio[3].write(`${JSON.stringify({ id, method, params })}\0`);
  command(1, 'Target.setDiscoverTargets', { discover: true });
  command(2, 'Target.createTarget', { url: `http://127.0.0.1:${server.address().port}/${secret}/` });

  return {
    async pass(parts) {
      while (!waiting) await new Promise((resolve) => (wake = resolve));
      taken().end(Buffer.concat(parts.map((part) => Buffer.from(part.buffer ?? part, part.byteOffset ?? 0, part.byteLength))));
    },
    async close() {
      child.removeAllListeners('exit');
      const gone = new Promise((resolve) => child.on('exit', resolve));
      command(3, 'Browser.close');
      await Promise.race([gone, new Promise((resolve) => setTimeout(resolve, LEAVE_S * 1000))]);
    },
  };
}

if (inNode) await node(...process.argv.slice(2));
else await page();
