//! A small MQTT client that says of everything it did whether it was allowed.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hoist_certs::{ClientTls, mqtt};
use hoist_protocol::BrokerUrl;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, LastWill, Packet, QoS, SubscribeFilter,
    SubscribeReasonCode,
};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::wait::{PATIENCE, POLL};

/// A message as it came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// On which topic.
    pub topic: String,
    /// What.
    pub payload: String,
}

/// Everything that happened on a connection.
#[derive(Debug, Default)]
struct Story {
    connected: bool,
    acknowledged: usize,
    /// For each SUBSCRIBE, which of its filters were granted.
    granted: Vec<Vec<bool>>,
    messages: Vec<Message>,
    /// Why it is over; and whether somebody meant it to be.
    ended: Option<(String, bool)>,
}

/// Whether the broker did what it was asked to, as far as it says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// It says that it did.
    Acknowledged,
    /// The connection was closed.
    Closed,
}

/// One connection; cut off when dropped.
pub struct Session {
    client: AsyncClient,
    story: watch::Receiver<Story>,
    /// One request at a time, so that its answer is known.
    asking: Mutex<()>,
    task: JoinHandle<()>,
}

impl Session {
    /// Connects; none when the broker, or its TLS, says no. Whoever says nothing is asked again.
    ///
    /// # Errors
    /// When it goes on to say nothing.
    pub async fn open(
        port: u16,
        tls: &ClientTls,
        id: &str,
        will: Option<LastWill>,
    ) -> Result<Option<Self>> {
        let url: BrokerUrl = format!("mqtts://127.0.0.1:{port}").parse()?;
        let mut options = mqtt::options(&url, id, tls);
        if let Some(will) = will {
            options.set_last_will(will);
        }
        let start = Instant::now();
        loop {
            let (client, event_loop) = mqtt::client(options.clone(), 16);
            let (sender, story) = watch::channel(Story::default());
            let session = Self {
                client,
                story,
                asking: Mutex::default(),
                task: tokio::spawn(drive(event_loop, sender)),
            };
            session
                .until("the broker answers", |story| {
                    story.connected || story.ended.is_some()
                })
                .await?;
            let ended = session.story.borrow().ended.clone();
            match ended {
                None => return Ok(Some(session)),
                Some((_, true)) => return Ok(None),
                Some((why, false)) => {
                    ensure!(start.elapsed() < PATIENCE, "{id} cannot connect: {why}");
                    sleep(POLL).await;
                }
            }
        }
    }

    /// Publishes at QoS 1.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn publish(&self, topic: &str, payload: &str, retain: bool) -> Result<Answer> {
        let _asking = self.asking.lock().await;
        let before = self.story.borrow().acknowledged;
        let published = self
            .client
            .publish(topic, QoS::AtLeastOnce, retain, payload.to_owned());
        if published.await.is_err() {
            return Ok(Answer::Closed);
        }
        let what = format!("the broker answers a publish on {topic}");
        self.until(&what, |story| {
            story.acknowledged > before || story.ended.is_some()
        })
        .await?;
        Ok(match self.story.borrow().acknowledged > before {
            true => Answer::Acknowledged,
            false => Answer::Closed,
        })
    }

    /// Subscribes at QoS 0; whether all of `filters` were granted.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn subscribe(&self, filters: &[String]) -> Result<bool> {
        let _asking = self.asking.lock().await;
        let before = self.story.borrow().granted.len();
        let packet = filters
            .iter()
            .map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtMostOnce));
        self.client.subscribe_many(packet).await?;
        let what = format!("the broker answers a subscription to {filters:?}");
        self.until(&what, |story| {
            story.granted.len() > before || story.ended.is_some()
        })
        .await?;
        let story = self.story.borrow();
        Ok(story
            .granted
            .get(before)
            .is_some_and(|codes| codes.iter().all(|granted| *granted)))
    }

    /// How many messages have come.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.story.borrow().messages.len()
    }

    /// Whether one that `fits` has come after the first `mark`.
    ///
    /// # Panics
    /// When fewer than `mark` have come.
    pub fn has(&self, mark: usize, fits: impl Fn(&Message) -> bool) -> bool {
        self.story.borrow().messages[mark..].iter().any(fits)
    }

    /// Waits until `count` messages have come.
    ///
    /// # Errors
    /// When they do not.
    pub async fn wait_count(&self, count: usize) -> Result<()> {
        self.until(&format!("{count} messages"), |story| {
            story.messages.len() >= count
        })
        .await
    }

    /// Waits for one that `fits` after the first `mark`.
    ///
    /// # Errors
    /// When it does not come, or the connection ends before.
    pub async fn wait(
        &self,
        what: &str,
        mark: usize,
        fits: impl Fn(&Message) -> bool,
    ) -> Result<()> {
        self.until(what, |story| {
            story.ended.is_some() || story.messages[mark..].iter().any(&fits)
        })
        .await?;
        if !self.has(mark, fits) {
            bail!("the connection ended while waiting: {what}");
        }
        Ok(())
    }

    /// Whether the connection is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.story.borrow().ended.is_some()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Story) -> bool) -> Result<()> {
        let mut story = self.story.clone();
        let done = timeout(PATIENCE, story.wait_for(holds)).await;
        done.with_context(|| format!("waited in vain: {what}"))?
            .with_context(|| format!("the client ended: {what}"))?;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn drive(mut event_loop: EventLoop, story: watch::Sender<Story>) {
    loop {
        let polled = event_loop.poll().await;
        let is_last = polled.is_err();
        story.send_modify(|story| match polled {
            Ok(Event::Incoming(packet)) => story.take(packet),
            Ok(Event::Outgoing(_)) => {}
            Err(error) => story.ended = Some((error.to_string(), is_answer(&error))),
        });
        if is_last {
            // What was said stays to be looked at until the session is dropped.
            sleep(Duration::MAX).await;
        }
    }
}

/// Whether the broker has said no, in one way or another, rather than nothing.
fn is_answer(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => false,
        ConnectionError::Io(error) => error.kind() != std::io::ErrorKind::ConnectionRefused,
        _ => true,
    }
}

impl Story {
    fn take(&mut self, packet: Packet) {
        match packet {
            Packet::ConnAck(_) => self.connected = true,
            Packet::PubAck(_) => self.acknowledged += 1,
            Packet::SubAck(answer) => {
                let codes = answer.return_codes.iter();
                let granted = |code: &SubscribeReasonCode| *code != SubscribeReasonCode::Failure;
                self.granted.push(codes.map(granted).collect());
            }
            Packet::Publish(publish) => self.messages.push(Message {
                topic: publish.topic,
                payload: String::from_utf8_lossy(&publish.payload).into_owned(),
            }),
            _ => {}
        }
    }
}
