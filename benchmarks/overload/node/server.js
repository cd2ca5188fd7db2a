'use strict'
// The endpoints of ../server.py on Fastify, guarded by @fastify/under-pressure. node server.js PORT, with the directory
// of the tally in ARENA_TALLY, that of the files in ARENA_FILES, and the cgroup's limit in bytes in ARENA_LIMIT.

const fs = require('node:fs')
const path = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { Readable } = require('node:stream')
const fastify = require('fastify')({ logger: false, bodyLimit: 64e6 })

const limit = Number(process.env.ARENA_LIMIT)
const bounds = { mb: 64, delay: 5, hold: 60 }
const ask = (request, name) => Math.max(0, Math.min(bounds[name], Number(request.query[name] ?? 0)))
const fill = (mb) => Buffer.alloc(Math.round(mb * 1e6), 'x')
const leaked = []

// The format of ../tally.py.
const tally = fs.openSync(path.join(process.env.ARENA_TALLY, String(process.pid)), 'w+', 0o600)
const counts = new BigUint64Array(2)
const count = (index) => {
  counts[index]++
  fs.writeSync(tally, counts, 0, 16, 0)
}
const counted = (handler) => async (request, reply) => {
  const answer = await handler(request, reply)
  count(1)
  return answer
}

const handlers = {
  async work (request) {
    await sleep(ask(request, 'delay') * 1000)
    const held = fill(ask(request, 'mb'))
    await sleep(ask(request, 'hold') * 1000)
    return String(held.length)
  },
  async grow (request) {
    const held = []
    for (let step = 0; step < 20; step++) {
      held.push(fill(ask(request, 'mb') / 20))
      await sleep(ask(request, 'hold') * 50)
    }
    return String(held.length)
  },
  async objects (request) {
    // 72 bytes an object in V8 (measured: the growth of heapUsed over 160,000).
    const held = Array.from({ length: Math.round(ask(request, 'mb') * 1e6 / 72) }, (_, number) => (
      { number, text: String(number) }
    ))
    await sleep(ask(request, 'hold') * 1000)
    return String(held.length)
  },
  async leak (request) {
    leaked.push(fill(ask(request, 'mb')))
    return String(leaked.length)
  },
  async file (request) {
    const data = await fs.promises.readFile(path.join(process.env.ARENA_FILES, String(Number(request.query.number))))
    return String(data.length)
  },
  async stream (request) {
    const pieces = ask(request, 'hold')
    return Readable.from((async function * () {
      for (let piece = 0; piece < pieces; piece++) {
        yield '.'
        await sleep(1000)
      }
    })())
  },
  async ping () { return 'pong' }
}

async function upload (request) {
  await sleep(ask(request, 'hold') * 1000)
  return String(request.body.length)
}

// As its README advises, thresholds below what the process may use: resident memory short of the limit by the same 24 MB
// that the simple checks of ../strategies.py keep, and three quarters of that for V8's heap. No maxEventLoopDelay: sampled
// every 10 ms, the resolution of its histogram, that is often empty, which under-pressure 9.2 takes for an infinite delay, and
// it would refuse nearly every request of an idle server (measured: 296 of 300 sequential ones; 0 of 300 without).
fastify.register(require('@fastify/under-pressure'), {
  maxRssBytes: limit - 24e6,
  maxHeapUsedBytes: Math.round((limit - 24e6) * 0.75),
  sampleInterval: 10
})
// After under-pressure's own hook and before the body, as in ../server.py.
fastify.addHook('preParsing', async (request) => {
  if (request.url !== '/livez') count(0)
})
fastify.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body))
fastify.after(() => {
  for (const [name, handler] of Object.entries(handlers)) fastify.get(`/${name}`, counted(handler))
  fastify.post('/upload', counted(upload))
  fastify.get('/livez', async () => 'ok')
})
fastify.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 }).catch((error) => {
  console.error(error)
  process.exit(1)
})
