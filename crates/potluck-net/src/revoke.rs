//! What was taken back: told at once to every member that is known, asked for at each contact, and acted on by whoever learns of it.

use potluck_core::{Defence, SignedRevocation};
use potluck_grant::GrantError;
use potluck_wire::{CONTROL_BYTES_MAX, FailureCode, Frame, FrameReader, PeerAddress, REVOCATIONS_PAGE_MAX};
use tokio::{sync::watch, task::JoinSet};
use tracing::{debug, info, warn};

use crate::{
    NetError, Node,
    greet::{close, read_next, utc_now},
};

/// Statements of what was taken back that are taken from one peer at once.
const PULLED_MAX: usize = potluck_grant::STATEMENTS_MAX;

impl Node {
    /// Takes note of revocations: whoever may be here no longer is shut out at once. Those that were new.
    pub fn note_revocations(&self, revocations: Vec<SignedRevocation>) -> Vec<SignedRevocation> {
        let note = |one: &SignedRevocation| match self.identity.gate.revoke(one.clone()) {
            Ok(new) => new,
            Err(error) => {
                debug!(%error, "a revocation was not kept");
                false
            }
        };
        let rivals = self.identity.gate.rivals();
        let new: Vec<_> = revocations.into_iter().filter(note).collect();
        for (root, rival) in self.identity.gate.rivals().into_iter().filter(|rival| !rivals.contains(rival)) {
            warn!(root = %root.short(), rival = %rival.next.short(), "an earlier root of the swarm names a second successor: its key is in other hands");
        }
        if !new.is_empty() {
            self.shut_out();
        }
        new
    }

    /// Ends what rests on something that was taken back.
    fn shut_out(&self) {
        if !Defence::PutOut.stands() {
            return;
        }
        self.revoked.send_modify(|count| *count += 1);
        for link in self.links.all().into_iter().chain(self.tunnel_links.all()) {
            if let Err(error) = self.identity.gate.still(&link.member, utc_now()) {
                info!(peer = %link.peer.short(), %error, "a connection is closed");
                close(&link.connection, FailureCode::NotAdmitted);
            }
        }
    }

    /// Counts up whenever something was taken back: to keep what is known on the disk.
    pub fn revocations_changed(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }

    /// Takes these back, here and at these members: how many have taken note of them.
    ///
    /// # Errors
    /// Why one of them says nothing.
    pub async fn revoke(
        &self,
        revocations: Vec<SignedRevocation>,
        members: Vec<PeerAddress>,
    ) -> Result<usize, GrantError> {
        for revocation in &revocations {
            self.identity.gate.revoke(revocation.clone())?;
        }
        self.shut_out();
        Ok(self.tell_revocations(revocations, members).await)
    }

    /// Tells these members at once: how many have taken note.
    pub(crate) async fn tell_revocations(&self, new: Vec<SignedRevocation>, members: Vec<PeerAddress>) -> usize {
        let mut told = JoinSet::new();
        for member in members {
            let (node, pages) = (self.clone(), new.chunks(REVOCATIONS_PAGE_MAX).map(<[_]>::to_vec).collect::<Vec<_>>());
            told.spawn(async move {
                for page in pages {
                    let answered =
                        node.in_time(&member, node.revocations_page(&member, Frame::Revocations(page))).await;
                    if let Err(error) = answered {
                        debug!(peer = %member.peer.short(), %error, "a member was not told what was taken back");
                        return false;
                    }
                }
                true
            });
        }
        told.join_all().await.into_iter().filter(|told| *told).count()
    }

    /// Asks a member what was taken back that is not known here, and takes note of it.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Lost` where it does not answer in time.
    pub async fn pull_revocations(&self, from: &PeerAddress) -> Result<Vec<SignedRevocation>, NetError> {
        let asked = async {
            let digest = self.identity.gate.revocations_digest();
            let mut stream = self.ask(from, Frame::ListRevocations(digest)).await?;
            let (mut reader, mut known) = (FrameReader::new(CONTROL_BYTES_MAX), Vec::new());
            while known.len() < PULLED_MAX {
                match read_next(from.peer, &mut stream, &mut reader).await? {
                    Frame::Revocations(page) => {
                        let last = page.len() < REVOCATIONS_PAGE_MAX;
                        known.extend(page);
                        if last {
                            break;
                        }
                    }
                    other => {
                        return Err(NetError::Unexpected {
                            peer: from.peer,
                            got: other.kind(),
                            expected: "revocations",
                        });
                    }
                }
            }
            Ok(known)
        };
        let known = self.in_time(from, asked).await?;
        Ok(self.note_revocations(known))
    }

    async fn revocations_page(&self, to: &PeerAddress, frame: Frame) -> Result<(), NetError> {
        let mut stream = self.ask(to, frame).await?;
        match read_next(to.peer, &mut stream, &mut FrameReader::new(CONTROL_BYTES_MAX)).await? {
            Frame::Revocations(_) => Ok(()),
            other => Err(NetError::Unexpected { peer: to.peer, got: other.kind(), expected: "revocations" }),
        }
    }

    /// What is known here, as messages: full pages, and a last one that is not full; one that is empty where whoever asks knows
    /// the same.
    pub(crate) fn revocation_pages(&self, theirs: [u8; 32]) -> Vec<Frame> {
        let gate = &self.identity.gate;
        let known = if gate.revocations_digest() == theirs { Vec::new() } else { gate.revocations() };
        let mut pages: Vec<_> = known.chunks(REVOCATIONS_PAGE_MAX).map(<[_]>::to_vec).collect();
        if known.len().is_multiple_of(REVOCATIONS_PAGE_MAX) {
            pages.push(Vec::new());
        }
        pages.into_iter().map(Frame::Revocations).collect()
    }
}
