"""Every limit of the formats, with its reason. Bytes and counts; nothing here is a setting."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

#: Sequences are below this: they fit 64 bits with a sign, in every library.
SEQ_LIMIT = 1 << 63

#: Positions between two anchors of the record hash: at most 192 KiB are hashed to continue.
HASH_GRID = 4096

#: Largest payload of one record. Larger requests are recorded in pieces (one piece fits any frame).
RECORD_PAYLOAD_BYTES_MAX = 1 * MIB

#: Largest JSON body of a record: it must fit a tap control message of 64 KiB with its other words.
BODY_BYTES_MAX = 48 * KIB

#: Largest payload part before compression: sender and receiver hold it in memory several times.
FRAME_PLAIN_BYTES_MAX = 4 * MIB

#: Most records of a frame: 65,536 flushes or zeroes without payload are 2.6 MiB of index.
FRAME_RECORDS_MAX = 65_536

#: Most markers of a frame: the clear header stays under 3 KiB.
FRAME_MARKERS_MAX = 64

#: zstd never grows a part by more than this, nor does the 16-byte tag.
SEAL_OVERHEAD_MAX = 32 * KIB

#: A sealed part that claims to be larger is refused before memory is taken for it.
PART_SEALED_BYTES_MAX = FRAME_PLAIN_BYTES_MAX + SEAL_OVERHEAD_MAX

#: A segment is closed when it reaches this size: 0.1 s of a very busy stream, few requests.
SEGMENT_BYTES_TARGET = 16 * MIB

#: Hard limit of a segment: the target, and one frame more.
SEGMENT_BYTES_MAX = SEGMENT_BYTES_TARGET + 2 * PART_SEALED_BYTES_MAX + MIB

#: Largest JSON message of a session.
MESSAGE_JSON_BYTES_MAX = 64 * KIB

#: Largest message of a session: one frame.
MESSAGE_BYTES_MAX = 2 * PART_SEALED_BYTES_MAX + 4 * KIB

#: Largest message of tap control (one datagram of a SOCK_SEQPACKET socket).
TAP_MESSAGE_BYTES_MAX = 64 * KIB

#: Largest disk, bytes.
DISK_BYTES_MAX = 64 * 1024 * 1024 * MIB

#: Most disks of a stream: BEGIN names all of them in one body.
STREAM_DISKS_MAX = 256

#: Smallest unit of a disk, bytes.
SECTOR_BYTES = 512

#: Key files and wrapped key objects are a few hundred bytes; anything larger is not one.
KEY_OBJECT_BYTES_MAX = 16 * KIB

#: What a hash list tells of a disk, bytes: small enough to find changes, 16 bytes each.
HASH_BLOCK_BYTES = 64 * KIB

#: Blocks of one object of a hash list: 16 GiB of a disk in at most 4.3 MiB.
HASH_PART_BLOCKS = 256 * KIB

#: Larger is no part of a hash list: it is held in memory as a whole.
HASH_PART_BYTES_MAX = 8 * MIB

#: Most bytes that one FETCHED carries: what an agent does not read must not fill ingest's memory.
FETCH_BYTES_MAX = 512 * KIB

#: A certificate of a host with its intermediate, in PEM: about 2 KiB.
CERTIFICATE_CHAIN_BYTES_MAX = 16 * KIB

#: Largest message of control: an inventory of a thousand machines, and held once for each host.
CONTROL_MESSAGE_BYTES_MAX = 1 * MIB

#: Most groups of one host, in its assignment and in each heartbeat.
HOST_GROUPS_MAX = 512

#: Most machines of one host's inventory: a hypervisor runs a few hundred.
HOST_MACHINES_MAX = 4096

#: Most fields of a message's free part (an event's data, an answer's result), each flat.
CONTROL_DETAILS_MAX = 64

#: Most doors in an assignment or a ticket: a host tries them in order.
DOORS_MAX = 64

#: Hosts of one tenant in a data node's record: 10,000 of them are half a message.
SERVED_HOSTS_MAX = 10_000

#: Groups of one host in a data node's record.
SERVED_GROUPS_MAX = 1024

#: Tenants of one data node: their record versions fit one message of control.
SERVED_TENANTS_MAX = 10_000

#: Streams of one message of facts: some 300 bytes each.
FACTS_STREAMS_MAX = 2000

#: A ticket with a key for each of a tenant's data nodes: it fits a message of the control door.
TICKET_BYTES_MAX = 32 * KIB

#: Streams of one ticket: hosts on which a group's machines run.
TICKET_STREAMS_MAX = 256

#: Largest JSON message of a restore: a list of ranges.
RESTORE_JSON_BYTES_MAX = 256 * KIB

#: Most bytes of one READ: few round trips, little memory.
RESTORE_READ_BYTES_MAX = 4 * MIB

#: READs that a client may have under way: what is read ahead for one restore.
RESTORE_READS_MAX = 8

#: Ranges of one answer: 40 bytes each in JSON.
RESTORE_RANGES_MAX = 4096
