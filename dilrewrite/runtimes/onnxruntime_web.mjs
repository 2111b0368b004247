// ONNX Runtime Web's end of onnxruntime_web.py: it runs models under node, in a process of its own, and reads the clock there.
//
// node onnxruntime_web.mjs PACKAGE THREADS: PACKAGE is the folder of onnxruntime-web, THREADS a number or "default".
// Requests come on standard input, answers go to file descriptor 3. A message is the length of its header (four bytes,
// the lowest first), the header (JSON), and blobs whose lengths are the header's `sizes`. A tensor is {name, type, dims}
// and a blob, or one of strings with its `texts` and an empty blob.

import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const ARRAYS = {
  bool: Uint8Array, float16: Uint16Array, float32: Float32Array, float64: Float64Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
};

// -- messages ---------------------------------------------------------------------------------------------------------

/** The parts of a message, to be written one after the other. */
function packed(header, blobs = []) {
  const text = new TextEncoder().encode(JSON.stringify({ ...header, sizes: blobs.map((blob) => blob.byteLength) }));
  return [new Uint8Array(Uint32Array.of(text.length).buffer), text, ...blobs];
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
    const whole = parts.length === 1 ? parts[0] : Buffer.concat(parts);
    parts = [whole.subarray(size)];
    held -= size;
    return whole.subarray(0, size);
  };
}

/** Read a message: its header and its blobs, each an ArrayBuffer of its own. `null` at the end of the stream. */
async function message(read) {
  const length = await read(4);
  const text = length && (await read(length.readUInt32LE()));
  if (!text) return null;
  const header = JSON.parse(text);
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

/** Models by key, and the sessions of those that are loaded: a method for each request. */
class Server {
  constructor(ort, printed) {
    this.ort = ort;
    this.printed = printed;
    this.models = new Map();
    this.sessions = new Map();
  }

  add({ key, files, feeds, optimize }, blobs) {
    const tensors = feeds.map((feed, place) => [feed, blobs[1 + files.length + place]]);
    this.models.set(key, {
      data: new Uint8Array(blobs[0]),
      feeds: () => Object.fromEntries(tensors.map(([feed, blob]) => [feed.name, this.tensor(feed, blob)])),
      options: {
        executionProviders: ['wasm'],
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
    for (const key of order) {
      const { session, feeds } = this.sessions.get(key);
      const start = performance.now();
      await telling('CannotRun', () => session.run(feeds));
      seconds.push((performance.now() - start) / 1000);
    }
    return [{ seconds }];
  }

  /** The text of ONNX Runtime's profile, which it prints. */
  async profile({ key, runs }) {
    const loaded = await this.loaded(key, { enableProfiling: true });
    try {
      for (let run = 0; run <= runs; run++) await telling('CannotRun', () => loaded.session.run(loaded.feeds));
      const text = await this.printed(() => loaded.session.endProfiling());
      return [{}, [new TextEncoder().encode(text)]];
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
        type === 'string' ? new Uint8Array() : new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
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
  async answer(header, blobs) {
    try {
      const [told, more] = (await this[header.request](header, blobs)) ?? [{}];
      return packed({ kind: 'done', ...told }, more);
    } catch (error) {
      if (error.fatal) throw error;
      return packed({ kind: error.kind ?? 'bug', text: error.kind ? error.message : String(error.stack) });
    }
  }
}

// -- node -------------------------------------------------------------------------------------------------------------

function send(parts) {
  for (const part of parts)
    for (let at = 0; at < part.byteLength; ) at += fs.writeSync(3, part, at, part.byteLength - at);
}

/** Return what is printed while `work` runs: WebAssembly prints through one of these. */
async function printedInNode(work) {
  const lines = [];
  const { log } = console;
  const { writeSync } = fs;
  console.log = (...words) => lines.push(`${words.join(' ')}\n`);
  fs.writeSync = (fd, data, ...rest) => (fd === 1 ? lines.push(String(data)) : writeSync(fd, data, ...rest));
  try {
    await work();
  } finally {
    console.log = log;
    fs.writeSync = writeSync;
  }
  return lines.join('');
}

function dies(error) {
  fs.writeSync(2, `${String(error?.message ?? error).replace(/\s+/g, ' ')}\n`);
  process.exit(70);
}

async function node(folder, threads) {
  process.on('SIGINT', () => {}); // Ctrl-C reaches the whole process group: the parent decides, and closes the pipe
  process.on('uncaughtException', dies);
  process.on('unhandledRejection', dies);
  const read = reader(process.stdin);
  let server = null;
  for (let request; (request = await message(read)); ) {
    if (request[0].request === 'hello') {
      try {
        const ort = await import(pathToFileURL(path.join(folder, 'dist', 'ort.node.min.mjs')));
        if (threads !== 'default') ort.env.wasm.numThreads = Number(threads);
        server = new Server(ort, printedInNode);
        send(packed({ kind: 'done' }));
      } catch (error) {
        send(packed({ kind: 'CannotLoad', text: `onnxruntime-web cannot be imported: ${error.message}` }));
      }
    } else {
      send(await server.answer(...request));
    }
  }
  process.exit(0);
}

await node(...process.argv.slice(2));
