// Reads one JSON request a line, {path, leaf, links}, and answers each with the root CID of that file.
import { createReadStream } from 'node:fs'
import { createInterface } from 'node:readline'
import { BlackHoleBlockstore } from 'blockstore-core/black-hole'
import { importer } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'

for await (const line of createInterface({ input: process.stdin })) {
  const { path, leaf, links } = JSON.parse(line)
  const options = {
    cidVersion: 1,
    rawLeaves: true,
    wrapWithDirectory: false,
    chunker: fixedSize({ chunkSize: leaf }),
    layout: balanced({ maxChildrenPerNode: links })
  }
  for await (const entry of importer([{ content: createReadStream(path) }], new BlackHoleBlockstore(), options)) {
    console.log(entry.cid.toString())
  }
}
