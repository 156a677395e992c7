package loader;

import bulkgrpc.v1.BatchesAcknowledged;
import bulkgrpc.v1.IngestServiceGrpc;
import bulkgrpc.v1.Job;
import bulkgrpc.v1.JobHeader;
import bulkgrpc.v1.JobServiceGrpc;
import bulkgrpc.v1.RecordBatch;
import bulkgrpc.v1.Seal;
import bulkgrpc.v1.StreamRecordsRequest;
import bulkgrpc.v1.StreamRecordsResponse;
import bulkgrpc.v1.WatchJobRequest;
import bulkgrpc.v1.WatchJobResponse;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Timestamp;
import com.google.rpc.RetryInfo;
import examples.v1.SensorReading;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.util.Iterator;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.Semaphore;

/** Loads sensor readings: SERVER TENANT KEY ROWS [RETRY_SECONDS]. The same key submits the same job: nothing is written twice. */
public final class Main {
  private static final int BATCH_RECORDS = 1000;
  /** Batches that are sent and not acknowledged yet. */
  private static final int IN_FLIGHT = 32;
  private static final long PAUSE_MIN_MILLIS = 100;
  private static final long PAUSE_MILLIS = 1000;
  private static final long START_SECONDS = 1_767_225_600L;

  public static void main(String[] arguments) throws Exception {
    String key = arguments[2];
    long rows = Long.parseLong(arguments[3]);
    long retryMillis = 1000 * Long.parseLong(arguments.length > 4 ? arguments[4] : "120");
    ManagedChannel channel = ManagedChannelBuilder.forTarget(arguments[0]).usePlaintext().build();
    Metadata metadata = new Metadata();
    metadata.put(Metadata.Key.of("bulkgrpc-tenant", Metadata.ASCII_STRING_MARSHALLER), arguments[1]);
    var tenant = MetadataUtils.newAttachHeadersInterceptor(metadata);
    Job job = load(IngestServiceGrpc.newStub(channel).withInterceptors(tenant), key, rows, retryMillis);
    Iterator<WatchJobResponse> changes = JobServiceGrpc.newBlockingStub(channel)
        .withInterceptors(tenant)
        .watchJob(WatchJobRequest.newBuilder().setName(job.getName()).build());
    while (changes.hasNext()) {
      job = changes.next().getJob();
    }
    var counts = job.getCounts();
    System.out.printf("%s: %s, %d written, %d duplicate%n",
        job.getName(), job.getState(), counts.getWritten(), counts.getDuplicate());
    channel.shutdownNow();
  }

  /**
   * Submits again after a failure that can pass; the job continues where it was. After retryMillis without a batch
   * acknowledged it throws the last failure, and the job stays open for its key.
   */
  private static Job load(IngestServiceGrpc.IngestServiceStub client, String key, long rows, long retryMillis)
      throws Exception {
    long acknowledged = 0;
    long progressNanos = System.nanoTime();
    while (true) {
      Submission submission = new Submission(client, key, rows);
      try {
        return submission.run();
      } catch (StatusRuntimeException error) {
        // A server that opens every stream and drops it is no progress.
        if (submission.acknowledged > acknowledged) {
          acknowledged = submission.acknowledged;
          progressNanos = System.nanoTime();
        }
        long pause = pauseMillis(error);
        if (pause < 0 || (System.nanoTime() - progressNanos) / 1_000_000 + pause > retryMillis) {
          throw error;
        }
        Thread.sleep(pause);
      }
    }
  }

  /** How long to wait before the job is opened again, as the server asks; -1 if that cannot help. */
  private static long pauseMillis(StatusRuntimeException error) throws InvalidProtocolBufferException {
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(RetryInfo.class)) {
        var delay = detail.unpack(RetryInfo.class).getRetryDelay();
        return Math.max(PAUSE_MIN_MILLIS, delay.getSeconds() * 1000 + delay.getNanos() / 1_000_000);
      }
    }
    Status.Code code = error.getStatus().getCode();
    return code == Status.Code.UNAVAILABLE || code == Status.Code.ABORTED ? PAUSE_MILLIS : -1;
  }

  /** The records of a batch; one without records after the last. The same ones whenever it is asked. */
  private static RecordBatch batch(long sequence, long rows) {
    RecordBatch.Builder batch = RecordBatch.newBuilder().setSequence(sequence);
    for (long row = sequence * BATCH_RECORDS; row < Math.min((sequence + 1) * BATCH_RECORDS, rows); row++) {
      Timestamp time = Timestamp.newBuilder().setSeconds(START_SECONDS + row).build();
      batch.addRecords(SensorReading.newBuilder()
          .setSensorId("S" + row % 100).setValue(row / 2.0).setSampledAt(time).build().toByteString());
    }
    return batch.build();
  }

  /** One stream of the job. */
  private static final class Submission implements StreamObserver<StreamRecordsResponse> {
    private final long rows;
    private final Semaphore window = new Semaphore(IN_FLIGHT);
    private final CompletableFuture<Long> first = new CompletableFuture<>();
    private final CompletableFuture<Job> sealed = new CompletableFuture<>();
    private final StreamObserver<StreamRecordsRequest> requests;
    private volatile long acknowledged;

    Submission(IngestServiceGrpc.IngestServiceStub client, String key, long rows) {
      this.rows = rows;
      requests = client.streamRecords(this);
      JobHeader header =
          JobHeader.newBuilder().setDataset("datasets/sensor_readings").setIdempotencyKey(key).build();
      requests.onNext(StreamRecordsRequest.newBuilder().setHeader(header).build());
    }

    /** Sends what the job does not have yet; returns the job once it is sealed. */
    Job run() throws InterruptedException {
      try {
        long sequence = first.join();
        while (!sealed.isDone()) {
          RecordBatch batch = batch(sequence, rows);
          if (batch.getRecordsCount() == 0) {
            Seal seal = Seal.newBuilder().setBatchCount(sequence).build();
            requests.onNext(StreamRecordsRequest.newBuilder().setSeal(seal).build());
            break;
          }
          window.acquire();
          requests.onNext(StreamRecordsRequest.newBuilder().setBatch(batch).build());
          sequence++;
        }
        if (!sealed.isCompletedExceptionally()) {
          requests.onCompleted();
        }
        return sealed.join();
      } catch (CompletionException error) {
        throw (StatusRuntimeException) error.getCause();
      }
    }

    @Override
    public void onNext(StreamRecordsResponse answer) {
      switch (answer.getMessageCase()) {
        case OPENED -> {
          acknowledged = answer.getOpened().getNextSequence();
          if (answer.getOpened().getReplayed()) {
            sealed.complete(answer.getOpened().getJob());
          }
          first.complete(acknowledged);
        }
        case ACKNOWLEDGED -> {
          BatchesAcknowledged more = answer.getAcknowledged();
          window.release((int) (more.getNextSequence() - acknowledged));
          acknowledged = more.getNextSequence();
        }
        default -> sealed.complete(answer.getSealed().getJob());
      }
    }

    @Override
    public void onError(Throwable error) {
      sealed.completeExceptionally(error);
      first.completeExceptionally(error);
      window.release(IN_FLIGHT);
    }

    @Override
    public void onCompleted() {
      // Nothing after the seal's answer; before it, the stream ended too early.
      onError(Status.UNAVAILABLE.withDescription("the stream ended before the seal").asRuntimeException());
    }
  }
}
