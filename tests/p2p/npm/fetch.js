// Fetches a UnixFS file by bitswap: node fetch.js SEED_HEX MULTIADDR CID. Prints the SHA-256 of its bytes.
import { createHash } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { createBitswap } from '@helia/bitswap'
import * as dagPb from '@ipld/dag-pb'
import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { defaultLogger } from '@libp2p/logger'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { MemoryBlockstore } from 'blockstore-core/memory'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'

// Node 20 lacks this; the packages expect it.
Promise.withResolvers ??= function () {
  let settle
  const promise = new Promise((resolve, reject) => { settle = { resolve, reject } })
  return { promise, ...settle }
}

const [seed, address, cid] = process.argv.slice(2)
const libp2p = await createLibp2p({
  privateKey: await generateKeyPairFromSeed('Ed25519', Buffer.from(seed, 'hex')),
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() }
})
const unknown = async function * () {}
const bitswap = createBitswap({
  libp2p,
  blockstore: new MemoryBlockstore(),
  logger: defaultLogger(),
  getHasher: async () => sha256,
  routing: { findProviders: unknown, provide: async () => {}, get: unknown, put: async () => {} }
})
await bitswap.start()

const hash = createHash('sha256')
async function read (cid) {
  const block = await bitswap.want(cid, { signal: AbortSignal.timeout(20_000) })
  if (cid.code !== dagPb.code) {
    hash.update(block)
    return
  }
  for (const link of dagPb.decode(block).Links) {
    await read(link.Hash)
  }
}
try {
  await libp2p.dial(multiaddr(address))
  await read(CID.parse(cid))
  console.log(hash.digest('hex'))
} catch (error) {
  console.log(`failed: ${error.name} ${error.message}`)
}
process.exit(0)
