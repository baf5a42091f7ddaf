// MQTT.js, with a certificate, over TLS or a WebSocket, in both versions of MQTT.
//
// mqttjs_client.js FOLDER PORT tcp|websockets 3.1.1|5 CLIENT-ID subscribe FILTER COUNT
// mqttjs_client.js FOLDER PORT tcp|websockets 3.1.1|5 CLIENT-ID publish TOPIC PAYLOAD
//
// `subscribe` prints `granted QOS` or `refused CODE`, and then COUNT messages as `TOPIC RETAINED PAYLOAD`. `publish`
// retains at QoS 1 and prints `acknowledged`, or `refused CODE`. Both print `closed` when the broker ends the connection.
const fs = require("fs");
const mqtt = require("mqtt");

const [folder, port, transport, version, clientId, action, topic, last] = process.argv.slice(2);
const scheme = transport === "tcp" ? "mqtts" : "wss";
let messages = 0;
let done = false;

const client = mqtt.connect(`${scheme}://localhost:${port}/mqtt`, {
  clientId,
  protocolVersion: version === "5" ? 5 : 4,
  reconnectPeriod: 0,
  ca: fs.readFileSync(`${folder}/ca`),
  cert: fs.readFileSync(`${folder}/certificate`),
  key: fs.readFileSync(`${folder}/key`),
});

function end() {
  done = true;
  client.end();
}

client.on("connect", () => {
  if (action === "subscribe") {
    client.subscribe(topic, { qos: 1 }, (error, granted) => {
      if (error) {
        console.log(`refused ${error.code || 128}`);
        return end();
      }
      const code = granted[0].qos;
      console.log(code >= 128 ? `refused ${code}` : `granted ${code}`);
      if (code >= 128) end();
    });
  } else {
    client.publish(topic, last, { qos: 1, retain: true }, (error, packet) => {
      if (done) return;
      const code = error ? error.code : packet.reasonCode;
      console.log(code >= 128 ? `refused ${code}` : "acknowledged");
      end();
    });
  }
});

client.on("message", (topic, payload, packet) => {
  console.log(`${topic} ${packet.retain ? 1 : 0} ${payload}`);
  messages += 1;
  if (messages === Number(last)) end();
});

client.on("close", () => {
  if (!done) {
    done = true;
    console.log("closed");
    process.exit(0);
  }
});

client.on("error", (error) => {
  console.error(error);
});
