// Loads sensor readings. Run it again with the same key, after a crash too: nothing is written twice.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bulkgrpc "example.com/loader/gen/bulkgrpc/v1"
	examples "example.com/loader/gen/examples/v1"
)

const (
	batchRecords = 1000
	inFlight     = 32 // batches that are sent and not acknowledged yet
	pauseMin     = 100 * time.Millisecond
)

// Loader submits one job. Batch returns the records of a batch, nil after the last: the same ones whenever it is asked,
// because what was not acknowledged is sent again.
type Loader struct {
	Client bulkgrpc.IngestServiceClient
	Header *bulkgrpc.JobHeader
	Batch  func(sequence int64) ([][]byte, error)
	// RetryFor: after so long without a batch acknowledged, Load returns the last error. The job stays open for its key.
	RetryFor time.Duration

	acknowledged atomic.Int64 // all batches before this one
}

// Load returns the job once it is sealed. It opens the job again after a failure that can pass, where it was.
func (l *Loader) Load(ctx context.Context) (*bulkgrpc.Job, error) {
	progress, before := time.Now(), int64(0)
	for {
		job, err := l.stream(ctx)
		if err == nil {
			return job, nil
		}
		// A server that opens every stream and drops it is no progress.
		if now := l.acknowledged.Load(); now > before {
			progress, before = time.Now(), now
		}
		wait, retriable := retryAfter(err)
		if !retriable || time.Since(progress)+wait > l.RetryFor {
			return nil, err
		}
		log.Printf("again in %v: %v", wait, err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// stream sends what the job does not have yet, and returns the job once it is sealed.
func (l *Loader) stream(ctx context.Context) (job *bulkgrpc.Job, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.Client.StreamRecords(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(header(l.Header)); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	opened := answer.GetOpened()
	if opened.GetReplayed() { // sealed before: there is nothing to send
		return opened.GetJob(), stream.CloseSend()
	}
	l.acknowledged.Store(opened.GetNextSequence())
	window := make(chan struct{}, inFlight)
	ended := make(chan error, 1)
	go func() {
		acknowledged := opened.GetNextSequence()
		for {
			answer, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			for ; acknowledged < answer.GetAcknowledged().GetNextSequence(); acknowledged++ {
				<-window
			}
			l.acknowledged.Store(acknowledged)
			if sealed := answer.GetSealed(); sealed != nil {
				job = sealed.GetJob()
				ended <- nil
				return
			}
		}
	}()
	sequence := opened.GetNextSequence()
	for ; ; sequence++ {
		records, err := l.Batch(sequence)
		if err != nil {
			return nil, err
		}
		if records == nil {
			break
		}
		select {
		case window <- struct{}{}:
		case err := <-ended:
			return nil, err
		}
		if stream.Send(batch(sequence, records)) != nil {
			return nil, <-ended // Recv has the reason
		}
	}
	if stream.Send(seal(sequence)) != nil || stream.CloseSend() != nil {
		return nil, <-ended
	}
	err = <-ended
	return job, err
}

func header(header *bulkgrpc.JobHeader) *bulkgrpc.StreamRecordsRequest {
	return &bulkgrpc.StreamRecordsRequest{Message: &bulkgrpc.StreamRecordsRequest_Header{Header: header}}
}

func batch(sequence int64, records [][]byte) *bulkgrpc.StreamRecordsRequest {
	batch := &bulkgrpc.RecordBatch{Sequence: sequence, Records: records}
	return &bulkgrpc.StreamRecordsRequest{Message: &bulkgrpc.StreamRecordsRequest_Batch{Batch: batch}}
}

func seal(batches int64) *bulkgrpc.StreamRecordsRequest {
	seal := &bulkgrpc.Seal{BatchCount: batches}
	return &bulkgrpc.StreamRecordsRequest{Message: &bulkgrpc.StreamRecordsRequest_Seal{Seal: seal}}
}

// retryAfter returns how long to wait before the job is opened again, and whether that can help.
func retryAfter(err error) (time.Duration, bool) {
	failed := status.Convert(err)
	for _, detail := range failed.Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			return max(retry.GetRetryDelay().AsDuration(), pauseMin), true
		}
	}
	return time.Second, failed.Code() == codes.Unavailable || failed.Code() == codes.Aborted
}

// wait returns the job when its records are in the table.
func wait(ctx context.Context, jobs bulkgrpc.JobServiceClient, name string) (*bulkgrpc.Job, error) {
	watch, err := jobs.WatchJob(ctx, &bulkgrpc.WatchJobRequest{Name: name})
	if err != nil {
		return nil, err
	}
	var job *bulkgrpc.Job
	for {
		answer, err := watch.Recv()
		if errors.Is(err, io.EOF) { // the job has ended
			return job, nil
		}
		if err != nil {
			return nil, err
		}
		job = answer.GetJob()
	}
}

func main() {
	server := flag.String("server", "127.0.0.1:50051", "address of the server")
	tenant := flag.String("tenant", "default", "tenant, for a server without tokens")
	key := flag.String("key", "", "idempotency key: names the job across attempts")
	rows := flag.Int64("rows", 10_000, "readings to send")
	retryFor := flag.Duration("retry-for", 2*time.Minute, "give up after so long without progress")
	flag.Parse()

	connection, err := grpc.NewClient(*server, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	ctx := metadata.AppendToOutgoingContext(context.Background(), "bulkgrpc-tenant", *tenant)
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	loader := Loader{
		RetryFor: *retryFor,
		Client:   bulkgrpc.NewIngestServiceClient(connection),
		Header:   &bulkgrpc.JobHeader{Dataset: "datasets/sensor_readings", IdempotencyKey: *key},
		Batch: func(sequence int64) ([][]byte, error) {
			var records [][]byte
			for row := sequence * batchRecords; row < min((sequence+1)*batchRecords, *rows); row++ {
				record, err := proto.Marshal(&examples.SensorReading{
					SensorId:  fmt.Sprintf("S%d", row%100),
					Value:     float64(row) / 2,
					SampledAt: timestamppb.New(start.Add(time.Duration(row) * time.Second)),
				})
				if err != nil {
					return nil, err
				}
				records = append(records, record)
			}
			return records, nil
		},
	}
	job, err := loader.Load(ctx)
	if err != nil {
		log.Fatal(err)
	}
	job, err = wait(ctx, bulkgrpc.NewJobServiceClient(connection), job.GetName())
	if err != nil {
		log.Fatal(err)
	}
	counts := job.GetCounts()
	fmt.Printf("%s: %v, %d written, %d duplicate, %d rejected\n", job.GetName(), job.GetState(),
		counts.GetWritten(), counts.GetDuplicate(), counts.GetRejected())
}
