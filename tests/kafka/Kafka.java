// What tests do to an Apache Kafka with its own clients, and what those say is there.
//
// Arguments: a file with the client's settings, then commands, separated by `+`:
//   topic NAME PARTITIONS [SETTING=VALUE...]   makes a topic
//   grow NAME PARTITIONS                       gives it more partitions
//   remove NAME                                deletes it
//   trim NAME PARTITION OFFSET                 deletes the records before an offset
//   send NAME PARTITION COUNT CODEC [STEP]     records, at times that are STEP ms apart from a fixed one
//   spread NAME COUNT                          records with keys, where the producer puts them
//   mix NAME PARTITION                         transactions of two producers that overlap, one of each pair aborted
//   gone NAME PARTITION                        a record without value
//   commit NAME GROUP PARTITION OFFSET         commits an offset of a group
//   forget NAME GROUP                          removes a group and its offsets
//   committed NAME GROUP                       prints the offsets that a group has committed
//   read NAME                                  prints all committed records
// What is printed is a JSON object a line.

import java.io.FileInputStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class Kafka {
    static final long FIRST = 1_700_000_000_000L;
    static final Properties SETTINGS = new Properties();

    public static void main(String[] arguments) throws Exception {
        try (FileInputStream file = new FileInputStream(arguments[0])) {
            SETTINGS.load(file);
        }
        List<String> command = new ArrayList<>();
        for (String word : Arrays.asList(arguments).subList(1, arguments.length)) {
            if (word.equals("+")) {
                run(command);
                command.clear();
            } else {
                command.add(word);
            }
        }
        run(command);
        System.exit(0);
    }

    static void run(List<String> c) throws Exception {
        String topic = c.get(1);
        switch (c.get(0)) {
            case "topic" -> {
                Map<String, String> settings = new HashMap<>();
                c.subList(3, c.size()).forEach(s -> settings.put(s.split("=")[0], s.split("=")[1]));
                NewTopic wish = new NewTopic(topic, Optional.of(number(c, 2)), Optional.of((short) 1)).configs(settings);
                try (Admin admin = Admin.create(SETTINGS)) {
                    admin.createTopics(List.of(wish)).all().get();
                }
            }
            case "grow" -> {
                try (Admin admin = Admin.create(SETTINGS)) {
                    admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(number(c, 2)))).all().get();
                }
            }
            case "remove" -> {
                try (Admin admin = Admin.create(SETTINGS)) {
                    admin.deleteTopics(List.of(topic)).all().get();
                }
            }
            case "trim" -> {
                TopicPartition partition = new TopicPartition(topic, number(c, 2));
                try (Admin admin = Admin.create(SETTINGS)) {
                    admin.deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(number(c, 3)))).all().get();
                }
            }
            case "send" -> {
                long step = c.size() > 5 ? number(c, 5) : 1;
                try (KafkaProducer<byte[], byte[]> producer = producer(c.get(4), null)) {
                    for (int i = 0; i < number(c, 3); i++) {
                        producer.send(record(topic, number(c, 2), FIRST + i * step, c.get(4) + i));
                    }
                }
            }
            case "spread" -> {
                try (KafkaProducer<byte[], byte[]> producer = producer("none", null)) {
                    for (int i = 0; i < number(c, 2); i++) {
                        byte[] key = ("key-" + i).getBytes(StandardCharsets.UTF_8);
                        producer.send(new ProducerRecord<>(topic, key, ("value " + i).getBytes(StandardCharsets.UTF_8)));
                    }
                }
            }
            case "forget" -> {
                try (Admin admin = Admin.create(SETTINGS)) {
                    admin.deleteConsumerGroups(List.of(c.get(2))).all().get();
                }
            }
            case "mix" -> mix(topic, number(c, 2));
            case "gone" -> gone(topic, number(c, 2));
            case "commit" -> {
                Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
                offsets.put(new TopicPartition(topic, number(c, 3)), new OffsetAndMetadata(number(c, 4)));
                try (Admin admin = Admin.create(SETTINGS)) {
                    admin.alterConsumerGroupOffsets(c.get(2), offsets).all().get();
                }
            }
            case "committed" -> {
                try (Admin admin = Admin.create(SETTINGS)) {
                    admin.listConsumerGroupOffsets(c.get(2)).partitionsToOffsetAndMetadata().get().forEach((partition, at) -> {
                        if (partition.topic().equals(topic)) {
                            System.out.printf("{\"partition\":%d,\"offset\":%d}%n", partition.partition(), at.offset());
                        }
                    });
                }
            }
            case "read" -> read(topic);
            default -> throw new IllegalArgumentException(c.get(0));
        }
    }

    static int number(List<String> command, int at) {
        return Integer.parseInt(command.get(at));
    }

    static KafkaProducer<byte[], byte[]> producer(String codec, String transactions) {
        Properties settings = new Properties();
        settings.putAll(SETTINGS);
        settings.put("compression.type", codec);
        settings.put("linger.ms", "20");
        settings.put("batch.size", "4000");
        if (transactions != null) {
            settings.put("transactional.id", transactions);
        }
        return new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer());
    }

    static ProducerRecord<byte[], byte[]> record(String topic, int partition, long time, String text) {
        byte[] key = text.getBytes(StandardCharsets.UTF_8);
        byte[] value = ("{\"id\":\"" + text + "\",\"filler\":\"" + "abc".repeat(text.hashCode() & 63) + "\"}").getBytes(StandardCharsets.UTF_8);
        ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(topic, partition, time, key, value);
        record.headers().add("trace", key);
        return record;
    }

    static void mix(String topic, int partition) throws Exception {
        try (KafkaProducer<byte[], byte[]> first = producer("zstd", topic + "-first"); KafkaProducer<byte[], byte[]> second = producer("lz4", topic + "-second")) {
            first.initTransactions();
            second.initTransactions();
            for (int round = 0; round < 10; round++) {
                first.beginTransaction();
                second.beginTransaction();
                for (int i = 0; i < 7; i++) {
                    first.send(record(topic, partition, FIRST + round, "first" + round + "-" + i)).get();
                    second.send(record(topic, partition, FIRST + round, "second" + round + "-" + i)).get();
                }
                // Which of them is aborted, and which ends first, changes.
                if (round % 4 < 2) {
                    first.commitTransaction();
                    second.abortTransaction();
                } else {
                    second.commitTransaction();
                    first.abortTransaction();
                }
            }
        }
    }

    static void gone(String topic, int partition) throws Exception {
        try (KafkaProducer<byte[], byte[]> producer = producer("none", null)) {
            producer.send(new ProducerRecord<byte[], byte[]>(topic, partition, FIRST, "gone".getBytes(StandardCharsets.UTF_8), (byte[]) null)).get();
        }
    }

    static void read(String topic) {
        Properties settings = new Properties();
        settings.putAll(SETTINGS);
        settings.put("isolation.level", "read_committed");
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> partitions = new ArrayList<>();
            for (PartitionInfo info : consumer.partitionsFor(topic)) {
                partitions.add(new TopicPartition(topic, info.partition()));
            }
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            while (partitions.stream().anyMatch(p -> consumer.position(p) < ends.get(p))) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    System.out.printf("{\"partition\":%d,\"offset\":%d,\"time\":%d,\"key\":\"%s\",\"value\":\"%s\"}%n",
                        record.partition(), record.offset(), record.timestamp(), text(record.key()), text(record.value()));
                }
            }
        }
    }

    static String text(byte[] bytes) {
        return Base64.getEncoder().encodeToString(bytes == null ? new byte[0] : bytes);
    }
}
