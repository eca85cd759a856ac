// Reads a stream with the real Kinesis Client Library, stops in the middle of each shard, and leaves its lease table behind.
//
// Arguments: endpoints of Kinesis and DynamoDB, the stream, the application, and at which record of each shard it stops. Prints a
// JSON object a line: shard, sequence number and number within an aggregated record of each record that it took.

import java.net.URI;
import java.util.Set;
import java.util.Timer;
import java.util.TimerTask;
import java.util.concurrent.ConcurrentHashMap;
import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.awssdk.http.Protocol;
import software.amazon.awssdk.http.nio.netty.NettyNioAsyncHttpClient;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.cloudwatch.CloudWatchAsyncClient;
import software.amazon.awssdk.services.dynamodb.DynamoDbAsyncClient;
import software.amazon.awssdk.services.kinesis.KinesisAsyncClient;
import software.amazon.kinesis.common.ConfigsBuilder;
import software.amazon.kinesis.common.InitialPositionInStream;
import software.amazon.kinesis.common.InitialPositionInStreamExtended;
import software.amazon.kinesis.common.StreamIdentifier;
import software.amazon.kinesis.coordinator.Scheduler;
import software.amazon.kinesis.lifecycle.events.InitializationInput;
import software.amazon.kinesis.lifecycle.events.LeaseLostInput;
import software.amazon.kinesis.lifecycle.events.ProcessRecordsInput;
import software.amazon.kinesis.lifecycle.events.ShardEndedInput;
import software.amazon.kinesis.lifecycle.events.ShutdownRequestedInput;
import software.amazon.kinesis.metrics.NullMetricsFactory;
import software.amazon.kinesis.processor.ShardRecordProcessor;
import software.amazon.kinesis.processor.SingleStreamTracker;
import software.amazon.kinesis.retrieval.polling.PollingConfig;

public class Consume {
    static final Set<String> DONE = ConcurrentHashMap.newKeySet();
    static int stopAt;
    static int shards;

    public static void main(String[] arguments) throws Exception {
        System.setProperty("aws.cborEnabled", "false");
        // Whatever happens, it ends.
        new Timer(true).schedule(new TimerTask() {
            public void run() {
                Runtime.getRuntime().halt(1);
            }
        }, 90_000);
        stopAt = Integer.parseInt(arguments[4]);
        var credentials = StaticCredentialsProvider.create(AwsBasicCredentials.create("test", "test"));
        var region = Region.of("us-east-1");
        var kinesis = KinesisAsyncClient.builder().endpointOverride(URI.create(arguments[0])).credentialsProvider(credentials)
            .region(region).httpClientBuilder(NettyNioAsyncHttpClient.builder().protocol(Protocol.HTTP1_1)).build();
        var dynamodb = DynamoDbAsyncClient.builder().endpointOverride(URI.create(arguments[1])).credentialsProvider(credentials)
            .region(region).build();
        // No metrics are sent.
        var metrics = CloudWatchAsyncClient.builder().endpointOverride(URI.create(arguments[1])).credentialsProvider(credentials)
            .region(region).build();
        shards = kinesis.listShards(r -> r.streamName(arguments[2])).get().shards().size();
        var begin = InitialPositionInStreamExtended.newInitialPosition(InitialPositionInStream.TRIM_HORIZON);
        var stream = new SingleStreamTracker(StreamIdentifier.singleStreamInstance(arguments[2]), begin);
        var configs = new ConfigsBuilder(stream, arguments[3], kinesis, dynamodb, metrics, "worker", Processor::new);
        var polling = new PollingConfig(arguments[2], kinesis);
        new Scheduler(configs.checkpointConfig(), configs.coordinatorConfig(),
            configs.leaseManagementConfig().shardSyncIntervalMillis(500).failoverTimeMillis(2000),
            configs.lifecycleConfig(), configs.metricsConfig().metricsFactory(new NullMetricsFactory()), configs.processorConfig(),
            configs.retrievalConfig().retrievalSpecificConfig(polling)).run();
    }

    static class Processor implements ShardRecordProcessor {
        private String shard;
        private int taken;

        public void initialize(InitializationInput input) {
            shard = input.shardId();
        }

        public void processRecords(ProcessRecordsInput input) {
            for (var record : input.records()) {
                if (taken == stopAt) {
                    return;
                }
                taken++;
                synchronized (DONE) {
                    System.out.println("{\"shard\":\"" + shard + "\",\"number\":\"" + record.sequenceNumber() + "\",\"sub\":"
                        + record.subSequenceNumber() + "}");
                    if (taken == stopAt) {
                        try {
                            input.checkpointer().checkpoint(record.sequenceNumber(), record.subSequenceNumber());
                        } catch (Exception error) {
                            throw new RuntimeException(error);
                        }
                        DONE.add(shard);
                        if (DONE.size() == shards) {
                            System.out.flush();
                            Runtime.getRuntime().halt(0);
                        }
                    }
                }
            }
        }

        public void leaseLost(LeaseLostInput input) {}

        public void shardEnded(ShardEndedInput input) {}

        public void shutdownRequested(ShutdownRequestedInput input) {}
    }
}
