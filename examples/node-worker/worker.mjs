// A worker of an iii engine. It runs in a microVM, and reaches of the host nothing but the engine.
import { webcrypto } from 'node:crypto'
import { hostname, release } from 'node:os'
import { registerWorker } from 'iii-sdk'

// The SDK takes this from the global object, where Node 18 has none.
globalThis.crypto ??= webcrypto

// iii-super sets it: the engine's address, as this guest must write it. This SDK does not read it
// by itself.
const url = process.env.III_URL
if (!url) {
  console.error('III_URL is not set: start me with --engine ws://localhost:49134')
  // Nothing that a restart would change: see `restart` in docs/workers-file.md.
  process.exit(78)
}

const iii = registerWorker(url)

iii.registerFunction('node-worker::greet', async ({ name }) => {
  if (!name) throw new Error('whom? I was given no name')
  return { message: `Hello, ${name}!`, worker: hostname(), kernel: release(), node: process.version }
})

// The supervisor asks a worker to end with SIGTERM.
process.on('SIGTERM', async () => {
  await iii.shutdown()
  process.exit(0)
})

console.log(`serving node-worker::greet for ${url}`)
