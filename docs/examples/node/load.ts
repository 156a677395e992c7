// Loads sensor readings with Node.js. The same key submits the same job: nothing is written twice.
import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const [server, tenant, key, rows, protos, retrySeconds = "120"] = process.argv.slice(2);
const batchRecords = 1000;
const inFlight = 32; // batches that are sent and not acknowledged yet
const options = { includeDirs: [protos], longs: Number, enums: String, oneofs: true, defaults: true };
const files = ["bulkgrpc/v1/ingest.proto", "bulkgrpc/v1/jobs.proto"];
const api: any = (grpc.loadPackageDefinition(loader.loadSync(files, options)) as any).bulkgrpc.v1;
const messages = new protobuf.Root();
messages.resolvePath = (_from: string, path: string) => (path.startsWith("/") ? path : `${protos}/${path}`);
const Reading = messages.loadSync("examples/v1/sensors.proto").lookupType("examples.v1.SensorReading");
const errors = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
`).root;
const start = Date.UTC(2026, 0, 1) / 1000;

/** The records of a batch; undefined after the last. The same ones whenever it is asked. */
function batch(sequence: number): Uint8Array[] | undefined {
  const records: Uint8Array[] = [];
  const end = Math.min((sequence + 1) * batchRecords, Number(rows));
  for (let row = sequence * batchRecords; row < end; row++) {
    const reading = { sensorId: `S${row % 100}`, value: row / 2, sampledAt: { seconds: start + row } };
    records.push(Reading.encode(reading).finish());
  }
  return records.length ? records : undefined;
}

/** Sends what the job does not have yet, and returns the job once it is sealed. done.batches: how many are acknowledged. */
function submit(client: any, metadata: grpc.Metadata, done: { batches: number }): Promise<any> {
  return new Promise((resolve, reject) => {
    const stream = client.StreamRecords(metadata);
    let next = 0;
    let acknowledged = 0;
    let sealed = false;
    const send = () => {
      for (; !sealed && next - acknowledged < inFlight; next++) {
        const records = batch(next);
        if (!records) {
          stream.write({ seal: { batchCount: next } });
          stream.end();
          sealed = true;
          return;
        }
        stream.write({ batch: { sequence: next, records } });
      }
    };
    stream.on("data", (answer: any) => {
      if (answer.opened?.replayed) {
        stream.end();
        resolve(answer.opened.job);
      } else if (answer.sealed) {
        resolve(answer.sealed.job);
      } else {
        acknowledged = done.batches = (answer.opened ?? answer.acknowledged).nextSequence;
        if (answer.opened) next = acknowledged;
        send();
      }
    });
    stream.on("error", reject);
    stream.on("status", (status: grpc.StatusObject) => {
      const early = { code: grpc.status.UNAVAILABLE, message: "the stream ended before the seal" };
      if (status.code === grpc.status.OK) reject(early); // no effect after the seal's answer
    });
    stream.write({ header: { dataset: "datasets/sensor_readings", idempotencyKey: key } });
  });
}

/** How many milliseconds to wait before the job is opened again, as the server asks; undefined if that cannot help. */
function pauseMs(error: any): number | undefined {
  for (const status of error.metadata?.get("grpc-status-details-bin") ?? []) {
    const { details } = errors.lookupType("Status").decode(status) as any;
    for (const detail of details) {
      if (!detail.typeUrl.endsWith("/google.rpc.RetryInfo")) continue;
      const { retryDelay } = errors.lookupType("RetryInfo").decode(detail.value) as any;
      return Math.max(100, Number(retryDelay?.seconds ?? 0) * 1000 + (retryDelay?.nanos ?? 0) / 1e6);
    }
  }
  return [grpc.status.UNAVAILABLE, grpc.status.ABORTED].includes(error.code) ? 1000 : undefined;
}

/**
 * Submits again after a failure that can pass; the job continues where it was. After retrySeconds without a batch
 * acknowledged it throws the last failure, and the job stays open for its key.
 */
async function load(client: any, metadata: grpc.Metadata): Promise<any> {
  const done = { batches: 0 };
  let before = 0;
  let progress = Date.now();
  for (;;) {
    try {
      return await submit(client, metadata, done);
    } catch (error: any) {
      // A server that opens every stream and drops it is no progress.
      if (done.batches > before) {
        before = done.batches;
        progress = Date.now();
      }
      const pause = pauseMs(error);
      if (pause === undefined || Date.now() - progress + pause > Number(retrySeconds) * 1000) throw error;
      await new Promise((again) => setTimeout(again, pause));
    }
  }
}

const metadata = new grpc.Metadata();
metadata.set("bulkgrpc-tenant", tenant);
const credentials = grpc.credentials.createInsecure();
const sealed = await load(new api.IngestService(server, credentials), metadata);
const watch = new api.JobService(server, credentials).WatchJob({ name: sealed.name }, metadata);
let job = sealed;
for await (const answer of watch) job = answer.job;
const counts = job.counts ?? { written: 0, duplicate: 0 };
console.log(`${job.name}: ${job.state}, ${counts.written} written, ${counts.duplicate} duplicate`);
process.exit(0);
