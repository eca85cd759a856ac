// Sends records with the real Kinesis Producer Library, aggregated, and says for each where Kinesis put it.
//
// Arguments: the emulator's TLS port, the stream, how many records. Prints a JSON object a line: the record's bytes as text,
// its partition key, the shard and the sequence number.

import com.google.common.util.concurrent.ListenableFuture;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.kinesis.producer.KinesisProducer;
import software.amazon.kinesis.producer.KinesisProducerConfiguration;
import software.amazon.kinesis.producer.UserRecord;
import software.amazon.kinesis.producer.UserRecordResult;

public class Produce {
    public static void main(String[] arguments) throws Exception {
        long port = Long.parseLong(arguments[0]);
        String stream = arguments[1];
        int count = Integer.parseInt(arguments[2]);
        var configuration = new KinesisProducerConfiguration()
            .setKinesisEndpoint("127.0.0.1").setKinesisPort(port)
            .setStsEndpoint("127.0.0.1").setStsPort(port)
            .setCloudwatchEndpoint("127.0.0.1").setCloudwatchPort(port)
            .setVerifyCertificate(false).setMetricsLevel("none").setRegion("us-east-1")
            .setCredentialsProvider(StaticCredentialsProvider.create(AwsBasicCredentials.create("test", "test")))
            .setRecordMaxBufferedTime(200).setRecordTtl(60_000);
        var producer = new KinesisProducer(configuration);
        List<ListenableFuture<UserRecordResult>> answers = new ArrayList<>();
        List<String> keys = new ArrayList<>();
        List<String> bodies = new ArrayList<>();
        for (int batch = 0; batch < 4; batch++) {
            for (int i = batch * count / 4; i < (batch + 1) * count / 4; i++) {
                // Some keys are not ASCII; some records say where they belong by themselves.
                String key = i % 7 == 0 ? "schlüssel-" + i % 13 : "key-" + i % 50;
                String body = "{\"n\":" + i + ",\"text\":\"" + "x".repeat(i % 300) + "\"}";
                var record = new UserRecord(stream, key, ByteBuffer.wrap(body.getBytes(StandardCharsets.UTF_8)));
                if (i % 10 == 0) {
                    record.setExplicitHashKey(i % 20 == 0 ? "1" : "340282366920938463463374607431768211454");
                }
                answers.add(producer.addUserRecord(record));
                keys.add(key);
                bodies.add(body);
            }
            // The library learns the shards with its first batch, and aggregates from then on.
            producer.flushSync();
        }
        for (int i = 0; i < count; i++) {
            UserRecordResult result = answers.get(i).get();
            System.out.println("{\"body\":" + quoted(bodies.get(i)) + ",\"key\":" + quoted(keys.get(i)) + ",\"shard\":"
                + quoted(result.getShardId()) + ",\"number\":" + quoted(result.getSequenceNumber()) + "}");
        }
        producer.destroy();
    }

    private static String quoted(String text) {
        return "\"" + text.replace("\\", "\\\\").replace("\"", "\\\"") + "\"";
    }
}
